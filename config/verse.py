# A generated play whose entropy is known exactly. How close to that floor does a model come?
#     python train.py config/verse.py
# 801,920 parameters; 1:40 on 2 CPU cores; val loss 0.537, floor 0.488 (nats per character).
# It needs no network. It shows best whether a change helps: only the gap to the floor is left to learn.
out_dir = "out-verse"
dataset = "verse"
norm = "layernorm"  # a single kernel on a CPU; RMSNorm takes several
n_layer, n_head, n_embd, block_size = 4, 2, 128, 256  # a window shows most of a scene
batch_size = 20  # 20 x 256 = 5,120 tokens per update
max_iters = 500
eval_interval = 100
muon_lr, muon_momentum = 0.03, 0.9
min_lr = 0.0
expected = {  # step: normal val losses, from five seeds (docs/configs.md); val: hash of the val tokens
    "val": "78436c18afc7",
    0: (3.991, 4.077), 100: (0.667, 0.715), 200: (0.58, 0.634), 300: (0.558, 0.606), 400: (0.533, 0.578),
    500: (0.517, 0.56),
}  # fmt: skip
