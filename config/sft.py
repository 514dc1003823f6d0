# Instruction tuning: a base learns to answer, and to stop. Only replies and the token that ends them count.
#     python train.py config/sums.py                                                   the base
#     python train.py config/sft.py
#     python evaluate.py --out_dir=out-sums --dataset=sums_easy --task=exact_match     before
#     python evaluate.py --out_dir=out-sft --task=exact_match                          after
# On 2,642 held-out problems of one and two steps: before, 0.0 % are answered word for word, after 97.7 %, and
# all replies stop by themselves. On one core of a busy machine: 150 ms an update at best (3:00 in all), 3:43
# to 5:49 of CPU time, and far more by the clock. Look at what is learned of a row first:
#     python data.py --name=sums_easy --show=3
# Any rows of messages, on any base with its tokenizer; with a chat template that writes them:
#     python data.py --input=chat.jsonl --name=chat --tokenizer=out-base --show=3
#     python train.py config/sft.py --init_from=out-base --dataset=chat --out_dir=out-chat
#     python sample.py --out_dir=out-chat --chat
# The shape is the base's: 801,408 parameters. The learning rates are high, as it is young: it has seen 2.5
# million tokens. One that has seen billions forgets less with --optimizer=adamw --learning_rate=2e-5 (not
# measured here).
init_from = "out-sums"
out_dir = "out-sft"
dataset = "sums_easy"
batch_size = 12  # 12 x 256 = 3,072 tokens per update, about 700 of which are learned
max_iters = 1200  # x 3,072 = 1.2 passes over the rows
eval_interval = 400
learning_rate, muon_lr = 3e-3, 0.015
min_lr = 0.0
