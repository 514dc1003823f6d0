# Tiny Shakespeare by characters: the first run for everyone.
#     python train.py config/shakespeare_char.py
# On 2 CPU cores: 804,224 parameters; 1:20 of training; val loss 1.520 (nats per character; five other seeds:
# 1.519 to 1.529).
# On a GPU: nanoGPT's shape with 10M parameters; 14.1 seconds of training on an H100; val loss 1.4352.
# Without a network and without the text, a generated play stands in. Its losses are not comparable.
import torch

out_dir = "out-shakespeare-char"
dataset = "shakespeare_char"
eval_iters = 0  # the whole val split, each time
eval_interval = 150

_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())  # noqa: F821
if _cuda:
    print("config/shakespeare_char.py: found a GPU, so this is the 10M-parameter recipe")
    n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
    batch_size = 64  # 64 x 256 = 16,384 tokens per update
    max_iters = 800  # x 16,384 = 13 passes over the 1.0M training tokens
    eval_interval = 100
    dropout = 0.2  # without it, the model memorises the text in so many passes
    compile = True
else:
    n_layer, n_head, n_embd, block_size = 4, 2, 128, 128  # heads of 64 take a sixth less time than of 32
    norm = "layernorm"  # a single kernel on a CPU; RMSNorm takes several
    batch_size = 20  # 20 x 128 = 2,560 tokens per update
    max_iters = 750  # x 2,560 = 1.9 passes over the 1.0M training tokens
    muon_lr, muon_momentum = 0.03, 0.9
    beta1, beta2 = 0.8, 0.95
    expected = {  # step: normal val losses, from five seeds (docs/configs.md); val: hash of the val tokens
        "val": "d37d30cc0c83",
        0: (4.154, 4.238), 150: (1.758, 1.935), 300: (1.71, 1.8), 450: (1.642, 1.738), 600: (1.575, 1.635),
        750: (1.499, 1.549),
    }  # fmt: skip
min_lr = 0.0  # the learning rate is constant, then falls linearly to 0 over the second half
