# A base for config/sft.py: little stories with sums in them, two minutes of pre-training.
#     python train.py config/sums.py
# 801,408 parameters; val loss 0.188 (nats per character). On one core of a busy machine: 150 ms an update at
# best (2:00 in all); 2:36 of CPU time, 6:36 by the clock.
# It needs no network. "How many lamps?" is the heading of a story; the sums stand inside: see text/sums.py.
out_dir = "out-sums"
dataset = "sums_text"
norm = "layernorm"  # a single kernel on a CPU; RMSNorm takes several
n_layer, n_head, n_embd, block_size = 4, 2, 128, 256  # rows of config/sft.py fill such a window to 90 %
batch_size = 12  # 12 x 256 = 3,072 tokens per update
max_iters = 800
eval_interval = 400
muon_lr, muon_momentum = 0.03, 0.9
beta1, beta2 = 0.8, 0.95
min_lr = 0.0
