# What nanoGPT's recipe for a GPU reaches on Tiny Shakespeare (10.7M parameters, val loss 1.4697), on a laptop.
#     python train.py config/shakespeare_long.py
# 1,796,160 parameters; @ minutes on 2 CPU cores; val loss @ (nats per character); 1.4697 after @.
out_dir = "out-shakespeare-long"
dataset = "shakespeare_char"
norm = "layernorm"  # one kernel on a CPU, where RMSNorm is many
n_layer, n_head, n_embd, block_size = 4, 3, 192, 256
batch_size = 16  # 16 x 256 = 4,096 tokens per update
max_iters = 1700  # x 4,096 = 6.9 passes over the training text
muon_lr, muon_momentum = 0.025, 0.9
beta1, beta2 = 0.8, 0.95
min_lr = 0.0  # constant, then linearly to 0 over the second half
eval_iters = 0  # the whole val split
eval_interval = 100
