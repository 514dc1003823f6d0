# A base for config/sft.py: arithmetic told as little stories, two minutes of pre-training.
#     python train.py config/sums.py
out_dir = "out-sums"
dataset = "sums_text"
norm = "layernorm"  # a single kernel on a CPU; RMSNorm takes several
n_layer, n_head, n_embd, block_size = 4, 2, 128, 160  # the longest problem with its answer has 146 tokens
batch_size = 20  # 20 x 160 = 3,200 tokens per update
max_iters = 850
eval_interval = 425
muon_lr, muon_momentum = 0.03, 0.9
beta1, beta2 = 0.8, 0.95
min_lr = 0.0
