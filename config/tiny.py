# For trying things out: seconds, not minutes.
#     python train.py config/tiny.py
# 410,496 parameters; 7 seconds on 2 CPU cores; val loss 1.883 on Tiny Shakespeare.
out_dir = "out-tiny"
dataset = "shakespeare_char"
n_layer, n_head, n_embd, block_size = 2, 4, 128, 64
batch_size = 16  # 16 x 64 = 1,024 tokens per update
max_iters = 200
eval_interval = 50
expected = {  # step: normal val losses, from five seeds (docs/configs.md); val: hash of the val tokens
    "val": "d37d30cc0c83",
    0: (4.127, 4.237), 50: (2.122, 2.212), 100: (2.013, 2.08), 150: (1.934, 1.993), 200: (1.835, 1.916),
}  # fmt: skip
