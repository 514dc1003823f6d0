# 4 layers, 256 wide, a long window: the shape that other guides call cpu_small.
#     python train.py config/cpu_small.py --dataset=mine
# 3,181,312 parameters with 65 characters; half an hour or more on 2 CPU cores (not measured).
out_dir = "out-cpu-small"
dataset = "shakespeare_char"
n_layer, n_head, n_embd, block_size = 4, 4, 256, 512
batch_size = 8  # 8 x 512 = 4,096 tokens per update
max_iters = 2000
dropout = 0.1
