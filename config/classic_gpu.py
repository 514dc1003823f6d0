# The baseline on a GPU: nanoGPT's recipe for Tiny Shakespeare. Its README gives a best val loss of 1.4697.
#     python train.py config/classic_gpu.py
# 10,745,088 parameters; best val loss 1.4622 after 29.5 seconds of training on one H100.
# config/shakespeare_char.py beats it on a GPU. config/shakespeare_long.py gets below 1.47 on a laptop.
out_dir = "out-classic-gpu"
dataset = "shakespeare_char"
arch = "gpt2"
n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
batch_size = 64  # 64 x 256 = 16,384 tokens per update
max_iters = 5000  # x 16,384 = 82 passes over the training text
dropout = 0.2
optimizer = "adamw"
learning_rate = 1e-3
lr_schedule = "cosine"
warmup_iters = 100
min_lr = 1e-4
beta1, beta2 = 0.9, 0.99
eval_iters = 0  # the whole val split
compile = True
