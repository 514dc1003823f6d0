# GPT-2 (124M), the shape and the recipe of the paper, on a text of your own:
#     python data.py --input=FOLDER --name=large --tokenizer=bpe --vocab_size=50257   (or =gpt2)
#     torchrun --standalone --nproc_per_node=8 train.py config/base.py
# 124,439,808 parameters with 50,257 tokens. Days on 8 GPUs for GPT-2's own quality; not measured here.
out_dir = "out-base"
dataset = "large"
arch = "gpt2"
bias = True
n_layer, n_head, n_embd, block_size = 12, 12, 768, 1024
batch_size = 12
global_batch_size = 480  # x 1,024 = 491,520 tokens per update: 8 processes make 5 micro-steps of 12 windows
max_iters = 20000  # x 491,520 = 9.8 billion tokens
optimizer = "adamw"
learning_rate = 6e-4
lr_schedule = "cosine"
warmup_iters = 700
weight_decay = 0.1
eval_interval = 500
eval_iters = 200
compile = True
