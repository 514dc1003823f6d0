# Beats, on a laptop, the 1.4697 that nanoGPT's 10.7M-parameter recipe for Tiny Shakespeare reaches on a GPU.
#     python train.py config/shakespeare_long.py
# 1,796,160 parameters; 6:41 of training on 2 CPU cores; val loss 1.408 (nats per character). It is below
# 1.4697 after 5:04 (one seed).
out_dir = "out-shakespeare-long"
dataset = "shakespeare_char"
norm = "layernorm"  # a single kernel on a CPU; RMSNorm takes several
n_layer, n_head, n_embd, block_size = 4, 3, 192, 256
batch_size = 16  # 16 x 256 = 4,096 tokens per update
max_iters = 1450  # x 4,096 = 5.9 passes over the training text
muon_lr, muon_momentum = 0.025, 0.9
beta1, beta2 = 0.8, 0.95
min_lr, lr_cooldown = 0.0, 0.6  # constant, then falling linearly to 0 over the last 60 %
average_decay = 0.99  # the average of about 100 updates is evaluated and saved (techniques/average.py)
eval_iters = 0  # the whole val split
eval_interval = 290
