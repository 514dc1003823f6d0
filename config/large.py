# GPT-2 medium's shape, for GPUs and a text of a gigabyte or more. It memorises a smaller one.
#     python train.py config/large.py --dataset=large
#     torchrun --standalone --nproc_per_node=8 train.py config/large.py --dataset=large --strategy=fsdp
# 302,173,184 parameters with 65 characters (not measured).
out_dir = "out-large"
dataset = "shakespeare_char"
n_layer, n_head, n_embd, block_size = 24, 16, 1024, 1024
batch_size = 8
global_batch_size = 128  # x 1,024 = 131,072 tokens per update; one process makes 16 micro-steps
max_iters = 8000  # x 131,072 = 1.0 billion tokens
warmup_iters = 200
learning_rate = 1e-3
muon_lr = 0.02
eval_iters = 200
compile = True
