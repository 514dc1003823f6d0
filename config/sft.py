# sft
init_from = "out-sums"
out_dir = "out-sft"
dataset = "sums_easy"
batch_size = 20
max_iters = 1500
eval_interval = 500
eval_iters = 0
learning_rate = 3e-3
muon_lr = 0.02
min_lr = 0.0
