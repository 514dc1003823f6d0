# Python's standard library in 4,096 byte-pair tokens: 10 MB of real text that is on every machine.
#     python train.py config/python_code.py
# 3,344,064 parameters; about five minutes on 2 CPU cores (not measured).
out_dir = "out-python-code"
dataset = "python"
n_layer, n_head, n_embd, block_size = 4, 4, 192, 256
batch_size = 8  # 8 x 256 = 2,048 tokens per update
muon_lr = 0.03
min_lr = 0.0
start = "def "
