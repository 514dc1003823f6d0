# The baseline: nanoGPT's laptop recipe for Tiny Shakespeare, a small GPT-2 with AdamW and a cosine schedule.
#     python train.py config/classic.py
# 804,096 parameters; 1:31 to 1:40 on 2 CPU cores; val loss 1.90.
# config/shakespeare_char.py beats it on the same text, with a similar size and a newer recipe.
out_dir = "out-classic"
dataset = "shakespeare_char"
arch = "gpt2"
n_layer, n_head, n_embd, block_size = 4, 4, 128, 64
batch_size = 12  # 12 x 64 = 768 tokens per update
max_iters = 2000  # x 768 = 1.5 passes over the training text
optimizer = "adamw"
learning_rate = 1e-3
lr_schedule = "cosine"
warmup_iters = 100
min_lr = 1e-4
beta1, beta2 = 0.9, 0.99
eval_iters = 0  # the whole val split
dtype = "float32"
expected = {  # step: normal val losses, from five seeds (docs/configs.md); val: hash of the val tokens
    "val": "d37d30cc0c83",
    0: (4.163, 4.219), 250: (2.38, 2.468), 500: (2.225, 2.34), 750: (2.127, 2.182), 1000: (2.015, 2.106),
    1250: (1.977, 2.027), 1500: (1.926, 1.996), 1750: (1.893, 1.947), 2000: (1.874, 1.934),
}  # fmt: skip
