# One size up from config/tiny.py: done in a coffee break on a laptop.
#     python train.py config/small.py
# 1,796,160 parameters; about ten minutes on 2 CPU cores (not measured).
out_dir = "out-small"
dataset = "shakespeare_char"
n_layer, n_head, n_embd, block_size = 4, 6, 192, 256
batch_size = 16  # 16 x 256 = 4,096 tokens per update; 1,000 updates are 4.1 passes over the training text
min_lr = 0.0
