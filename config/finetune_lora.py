# Fine-tune a trained model with LoRA (techniques/lora.py): the recipe of SimpleFoundation, for any base.
#     python train.py config/finetune_lora.py --init_from=out-sums --dataset=sums_easy
# The shape (block_size, too) and the tokenizer are the trained model's.
init_from = "out-shakespeare-char"
out_dir = "out-lora"
dataset = "mine"
technique = "lora"
lora_rank, lora_alpha, lora_dropout, lora_targets = 16, 32.0, 0.05, "q,k,v,o"
epochs = 3.0
batch_size, gradient_accumulation_steps = 1, 4
optimizer, learning_rate, weight_decay = "adamw", 2e-5, 0.0
beta2 = 0.999
lr_schedule = "linear"
warmup_ratio = 0.03
min_lr = 0.0
eval_interval = 50
eval_iters = 10
