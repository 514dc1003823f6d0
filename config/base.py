# GPT-2 (124M): the paper's shape and recipe, on your own text.
#     python data.py --input=FOLDER --name=large --tokenizer=bpe --vocab_size=50257   (or =gpt2)
#     torchrun --standalone --nproc_per_node=8 train.py config/base.py
# 124,439,808 parameters with 50,257 tokens. To reach GPT-2's quality takes days on 8 GPUs (not measured).
out_dir = "out-base"
dataset = "large"
arch = "gpt2"
bias = True
n_layer, n_head, n_embd, block_size = 12, 12, 768, 1024
batch_size = 12
global_batch_size = 480  # x 1,024 = 491,520 tokens per update; each of 8 processes makes 5 micro-steps
max_iters = 20000  # x 491,520 = 9.8 billion tokens
optimizer = "adamw"
learning_rate = 6e-4
lr_schedule = "cosine"
warmup_iters = 700
eval_interval = 500
eval_iters = 200
compile = True
