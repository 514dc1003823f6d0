# Fine-tune a trained model with LoRA (techniques/lora.py). SimpleFoundation's recipe: rank 16, alpha 32, 3
# epochs, 1 x 4 windows an update, a learning rate of 2e-5 (1e-5 for large models).
#     python train.py config/finetune_lora.py --init_from=out-sums --dataset=sums_easy --max_iters=200
# 2e-5 is what full fine-tuning takes. LoRA usually wants 1e-4 to 3e-4, since B starts at zero. The command
# above takes about a minute; val loss 5.61 before, and after 200 updates of a learning rate of
#     2e-5: 5.05     1e-4: 2.13     3e-4: 0.87
# The shape and the tokenizer are the trained model's: the window is of 2,048 tokens where it has those. With
# config/shakespeare_char.py's 804,224 parameters frozen, 65,536 others are trained.
init_from = "out-shakespeare-char"
out_dir = "out-lora"
dataset = "mine"
technique = "lora"
lora_rank, lora_alpha, lora_dropout, lora_targets = 16, 32.0, 0.05, "q,k,v,o"
epochs = 3.0
batch_size, gradient_accumulation_steps = 1, 4
optimizer, learning_rate, weight_decay = "adamw", 2e-5, 0.0  # better: --learning_rate=2e-4
beta2 = 0.999
lr_schedule = "linear"
warmup_ratio = 0.03
min_lr = 0.0
eval_interval = 50
eval_iters = 10
