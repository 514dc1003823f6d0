# Tiny Shakespeare by characters: the first run for everyone.
#     python train.py config/shakespeare_char.py
# Laptop, 2 CPU cores: 804,224 parameters, 1:35 of training, val loss 1.520 (nats per character). With 900
# updates, 1:44: 1.513, mean of three seeds, from 1.510 to 1.516.
# GPU: the 10-million-parameter shape that nanoGPT trains on it (val 1.47 there); not measured here.
# Without network and without the text, a generated play stands in, with a floor of its own.
import torch

out_dir = "out-shakespeare-char"
dataset = "shakespeare_char"
eval_iters = 0  # the whole val split, each time
eval_interval = 150
log_interval = 10

_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())  # noqa: F821
if _cuda:
    print("config/shakespeare_char.py: a GPU is there, so this is the 10M-parameter recipe")
    n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
    batch_size = 64  # 64 x 256 = 16,384 tokens per update
    max_iters = 800  # x 16,384 = 13 passes over the 1.0M training tokens
    eval_interval = 100
    dropout = 0.2  # so many passes would be learnt by heart without it
    compile = True
else:
    n_layer, n_head, n_embd, block_size = 4, 2, 128, 128  # heads of 64: a sixth less time a step than of 32
    norm = "layernorm"  # one kernel on a CPU, where RMSNorm is many
    batch_size = 20  # 20 x 128 = 2,560 tokens per update
    max_iters = 850  # x 2,560 = 2.2 passes over the 1.0M training tokens
    muon_lr, muon_momentum = 0.03, 0.9
    beta1, beta2 = 0.8, 0.95
    expected = {  # val loss: five seeds, widened (curve.py)
        "val": "d37d30cc0c83",
        150: (1.769, 1.928), 300: (1.699, 1.819), 450: (1.689, 1.746), 600: (1.597, 1.675),
        750: (1.527, 1.576), 850: (1.486, 1.538),
    }  # fmt: skip
min_lr = 0.0  # constant, then linearly to 0 over the second half
