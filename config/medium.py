# 6 layers, 384 wide: the shape of nanoGPT's Tiny Shakespeare recipe for a GPU.
#     python train.py config/medium.py
# 10,671,744 parameters; minutes on one GPU, hours on a laptop (not measured).
out_dir = "out-medium"
dataset = "shakespeare_char"
n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
batch_size = 64  # 64 x 256 = 16,384 tokens per update
max_iters = 2000
dropout = 0.2  # without it, the model memorises the text in these 33 passes
