# Beats, on a laptop, the 1.4697 that nanoGPT's 10.7M-parameter recipe for Tiny Shakespeare reaches on a GPU.
#     python train.py config/shakespeare_long.py
# 1,796,160 parameters; 5:20 of training on 2 CPU cores; val loss 1.400 to 1.412 (nats per character, five
# seeds). With --max_iters=500 it reaches 1.468 to 1.470 in 1:50 (three seeds).
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
expected = {  # step: normal val losses, from five seeds (docs/configs.md); val: hash of the val tokens
    "val": "d37d30cc0c83",
    0: (4.156, 4.262), 290: (1.534, 1.604), 580: (1.47, 1.524), 870: (1.427, 1.48), 1160: (1.395, 1.442),
    1450: (1.38, 1.432),
}  # fmt: skip
