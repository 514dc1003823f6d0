# Learn from pairs of a right and a wrong working which is better (techniques/dpo.py), on the base of
# config/grpo.py, whose header has the commands that make it.
#     python train.py config/dpo.py
#     python evaluate.py --out_dir=out-few --file=ckpt.pt --task=exact_match           before
#     python evaluate.py --out_dir=out-dpo --file=ckpt.pt --task=exact_match           after
# The shape is the base's: 801,408 parameters.
init_from = "out-few"
out_dir = "out-dpo"
dataset = "sums_few"
technique = "dpo"
batch_size = 12  # pairs: 24 replies
max_iters = 100
eval_interval = 100
eval_iters = 2
log_interval = 5
save_interval = 25
learning_rate, muon_lr = 4e-4, 2e-3
min_lr = 0.0
