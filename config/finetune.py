# Fine-tune a trained model on another text: its weights, a new optimizer, a small learning rate.
#     python train.py config/shakespeare_char.py
#     python data.py --input=mine.txt --name=mine --tokenizer=out-shakespeare-char
#     python train.py config/finetune.py --dataset=mine
# The shape (block_size, too) and the tokenizer are the trained model's; this one has 804,224 parameters. A
# text with other characters needs a model with byte-pair tokens (see docs/your_text.md).
# With prompt/response data (--format=jsonl), only the responses count in the loss.
init_from = "out-shakespeare-char"
out_dir = "out-finetune"
dataset = "mine"
max_iters = 200
batch_size = 16
optimizer = "adamw"
learning_rate = 3e-4  # a tenth of the trained model's
lr_schedule = "linear"
warmup_ratio = 0.05
min_lr = 0.0
eval_interval = 50
eval_iters = 10
