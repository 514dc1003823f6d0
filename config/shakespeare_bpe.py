# Tiny Shakespeare in 1,024 byte-pair tokens instead of 65 characters. Compare bits per byte, not losses.
#     python train.py config/shakespeare_bpe.py && python evaluate.py --out_dir=out-shakespeare-bpe
# 1,049,728 parameters; 1:13 on 2 CPU cores; val loss 3.413, 2.182 bits per byte.
out_dir = "out-shakespeare-bpe"
dataset = "shakespeare_bpe"
norm = "layernorm"  # a single kernel on a CPU; RMSNorm takes several
n_layer, n_head, n_embd, block_size = 4, 2, 128, 128
batch_size = 16  # 16 x 128 = 2,048 tokens per update, about 5,000 characters
max_iters = 500
eval_interval = 100
eval_iters = 0  # the whole val split
muon_lr, muon_momentum = 0.03, 0.9
dropout = 0.1
min_lr = 0.0
expected = {  # step: normal val losses, from five seeds (docs/configs.md); val: hash of the val tokens
    "val": "8be2243ac95c",
    0: (6.921, 6.997), 100: (3.927, 4.032), 200: (3.696, 3.814), 300: (3.565, 3.712), 400: (3.466, 3.525),
    500: (3.394, 3.448),
}  # fmt: skip
