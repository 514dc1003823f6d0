# Go on from a trained model with another text: its weights, a fresh optimizer, a small learning rate.
#     python train.py config/shakespeare_char.py
#     python data.py --input=mine.txt --name=mine --tokenizer=out-shakespeare-char
#     python train.py config/finetune.py --dataset=mine
# The shape, block_size included, is the base's (804,224 parameters there), and so are its tokens: a text with
# other characters needs a byte-pair base (see the README).
# prompt/response data (--format=jsonl): only the responses are learned.
init_from = "out-shakespeare-char"
out_dir = "out-finetune"
dataset = "mine"
max_iters = 200
batch_size = 16
optimizer = "adamw"
learning_rate = 3e-4  # a tenth of what the base was trained with
lr_schedule = "linear"
warmup_ratio = 0.05
min_lr = 0.0
eval_interval = 50
eval_iters = 10
