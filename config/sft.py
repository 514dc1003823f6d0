# sft
init_from = "out-sums"
out_dir = "out-sft"
dataset = "sums_easy"
batch_size = 12
max_iters = 1200
eval_interval = 400
eval_iters = 20
learning_rate = 3e-3
muon_lr = 0.02
min_lr = 0.0
