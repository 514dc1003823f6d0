# The shape of nanoGPT's Tiny Shakespeare recipe for a GPU, 6 layers, 384 wide.
#     python train.py config/medium.py
# 10,671,744 parameters. Minutes on one GPU (not measured), hours on a laptop.
out_dir = "out-medium"
dataset = "shakespeare_char"
n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
batch_size = 64  # 64 x 256 = 16,384 tokens per update
max_iters = 2000
dropout = 0.2  # 33 passes over Tiny Shakespeare would be learnt by heart without it
muon_lr = 0.02
