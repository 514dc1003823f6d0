"""Train a language model: settings on top, then one visible loop: forward, loss, backward, clip, step.

    python train.py config/shakespeare_char.py                         prepare, train, evaluate, save, sample
    python train.py config/tiny.py --max_iters=50 --learning_rate=1e-3  change any setting below
    python train.py --init_from=resume --out_dir=out-tiny               go on exactly where a run stopped
    torchrun --standalone --nproc_per_node=4 train.py config/base.py    several GPUs

-h lists all settings. A config file is a small Python file that sets some of them.
"""

import dataclasses
import math
import sys
import time

import torch
import torch.nn.functional as F

import data
import optim
import tokenizer
from config import adopt, at_least, given, override, typed
from evaluate import evaluate, spread
from machine import distributed, hardware
from model import GPT, GPTConfig
from runtime import checkpoint, guard, memory, report
from sample import prompt_ids, read_start, stream_text
from text import prepare
from text.corpora import stand_in_notice

# -----------------------------------------------------------------------------
# the run
out_dir = "out"  # folder for checkpoints, metrics and plots; a relative one lies in the project's folder
init_from = "scratch"  # scratch | resume | auto: resume if there is a run | PATH of a run: its weights only
eval_only = False  # evaluate once, write no checkpoint, stop
seed = 1337  # initial weights, order of the data and dropout are functions of it
# the data
dataset = "shakespeare_char"  # in datasets/, or known: shakespeare_char shakespeare_bpe verse python sums
batch_size = 32  # windows per micro-step and process
block_size = 128  # tokens per window: how far the model can look back
gradient_accumulation_steps = 1  # micro-steps per update and process (not divided by the processes)
global_batch_size = 0  # windows per update of all processes: sets the micro-steps; 0 = as the two above say
pack = True  # prompt/response data: several examples in a window; False: one each, like lengths together
# the model
arch = "modern"  # modern | gpt2 | llama: chooses what the next nine leave open
norm = ""  # '' as arch says | layernorm | rmsnorm
position = ""  # '' as arch says | learned | rope
activation = ""  # '' as arch says | relu2 | gelu | swiglu
token_shift = -1  # half of what attention reads is from the token before: -1 as arch says | 0 | 1
qk_norm = -1  # normalise queries and keys: -1 as arch says | 0 | 1
tie_weights = -1  # head and embedding share their weights: -1 as arch says | 0 | 1
zero_init = -1  # output projections start at zero: -1 as arch says | 0 | 1
logit_cap = -1.0  # cap x tanh(logits / cap): -1 as arch says, 0 off
n_kv_head = 0  # key/value heads (grouped-query attention); 0 as arch says
n_layer = 4  # transformer blocks
n_head = 4  # attention heads; must divide n_embd
n_embd = 128  # width of the residual stream
n_ff = 0  # width inside the MLP; 0 = 4 x n_embd (swiglu: two thirds of it)
rope_theta = 10000.0  # base of the rotary wavelengths
bias = False  # biases in linear and LayerNorm layers
dropout = 0.0  # share of activations set to zero in training; 0.1-0.2 against overfitting
logits_mb = 256  # more logits than this in a micro-step: loss in chunks, a quarter slower there; 0 = no limit
gradient_checkpointing = False  # recompute activations in backward: less memory, about a third more time
# the optimizer
optimizer = "muon"  # muon | adamw | adam | sgd
learning_rate = 3e-3  # peak, of everything that is not under Muon
muon_lr = 0.02  # peak, of the matrices inside the blocks, with optimizer=muon
muon_momentum = 0.95  # Muon's (and SGD's) momentum
weight_decay = 0.1  # pulls matrices towards zero (muon: those in the blocks); adam, sgd: as L2
beta1 = 0.9  # Adam's part: memory of the gradient
beta2 = 0.95  # Adam's part: memory of its square
grad_clip = 1.0  # longest gradient vector; 0 = off
freeze = ""  # parameters that stay as they are, by name: 'wte,blocks.0'
layer_lr_decay = 1.0  # fine-tuning: each block below the top learns by this factor slower
# the schedule, counted in updates
max_iters = 1000  # exactly so many updates
epochs = 0.0  # passes over the training split instead of max_iters; 0 = use max_iters
lr_schedule = "trapezoid"  # constant | linear | cosine | step | polynomial | trapezoid
decay_lr = True  # False: constant after the warm-up
warmup_iters = 0  # updates of linear warm-up
warmup_ratio = 0.0  # the same as a share of lr_decay_iters; set one of the two
lr_decay_iters = -1  # where the schedule ends; -1 = max_iters
min_lr = -1.0  # where learning_rate ends (muon_lr falls in step); -1 = a tenth of it
lr_cooldown = 0.5  # trapezoid: share of the run in which it falls
lr_power = 1.0  # polynomial: exponent
lr_step_iters = 1000  # step: updates between two cuts
lr_gamma = 0.1  # step: factor of each cut
# evaluation, saving, reporting
eval_interval = 250  # updates between two evaluations
eval_iters = 20  # an evaluation reads this x 4,096 tokens of train and val, always the same; 0 = all of val
log_interval = 10  # updates between two lines
patience = 0  # stop after so many evaluations without a better val loss; 0 = off
min_delta = 0.0  # what counts as better
expected = {}  # normal val losses, {step: (lowest, highest)}: the end says whether they were (curve.py)
always_save_checkpoint = True  # ckpt.pt after each evaluation; False: best.pt only, and ckpt.pt at the end
save_interval = 0  # numbered checkpoints every so many updates; 0 = off
keep_checkpoints = 5  # how many numbered ones to keep
checkpoint_format = "file"  # file | sharded: each process writes its part, in the background (large models)
sample_interval = 0  # print a sample every so many updates; 0 = only at the end
tensorboard = False  # also write TensorBoard files to out_dir (pip install tensorboard)
wandb_log = False  # also send the numbers to Weights & Biases (pip install wandb)
wandb_project = "tinylm"  # project there
wandb_run_name = ""  # name of the run there; '' = out_dir
# text samples; sample.py reads these from the checkpoint
start = "\n"  # first text of the sample, or FILE:prompt.txt
max_new_tokens = 500  # its length
temperature = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token
top_k = 0  # choose among the k likeliest tokens; 0 = all
top_p = 1.0  # choose among the likeliest tokens that make up this probability; 1 = all
# the machine
device = "auto"  # auto | cpu | cuda | cuda:N | mps
dtype = "auto"  # auto | float32 | bfloat16 | float16 (with a loss scaler)
compile = False  # torch.compile: faster after a minute or so of compiling
backend = "auto"  # between processes: auto | nccl | gloo
strategy = "ddp"  # processes share: ddp the batch | zero1 also the optimizer | fsdp also the weights
offload = ""  # where the optimizer's averages rest: '' on the device | cpu (GPU: weights, too) | disk
timeout = 600.0  # seconds that a process waits for the others before it gives up
threads = 0  # CPU threads; 0 = torch's choice
oom_retry = True  # out of memory, one process: smaller batches, more micro-steps, the same gradient
# -----------------------------------------------------------------------------
config = override(globals())  # now each name above has its final value; config is the same as a dict
EVAL_TOKENS = 4096  # what one of eval_iters reads, whatever the batch size


# ---- what the loop calls; these functions read the settings and the state of this script
def evaluate_both() -> tuple[dict, dict]:
    """What evaluate() finds on train and on val: the same windows each time, as many of train as of val."""
    count = math.ceil(eval_iters * EVAL_TOKENS / block_size) if eval_iters else val_windows.n_windows
    count = min(count, val_windows.n_windows)
    return tuple(
        evaluate(raw_model, windows, spread(windows, count), device, autocast, rank, world_size)
        for windows in (train_windows, val_windows)
    )


def save(name: str) -> None:
    """Write the whole state of the run to out_dir/name: enough to resume, evaluate and sample."""
    plain = {
        "model_config": dataclasses.asdict(raw_model.config),
        "tokenizer": text_tokenizer.to_json(),
        "dataset": meta,
        "config": config,
        "scaler": scaler.state_dict(),
        **dict(step=step, tokens=tokens, seconds=seconds, evaluated_at=evaluated_at, bad_evals=bad_evals),
        **dict(train_loss=train_loss, val_loss=val_loss, best_val_loss=best_val_loss, best_step=best_step),
    }
    if line := saver.save(name, plain, raw_model, optimizer):
        out.say(line)


def save_after_error(kind, error, traceback) -> None:
    """sys.excepthook: whatever went wrong, the updates so far are not lost (where rank 0 has all of them)."""
    whole = strategy == "ddp" and checkpoint_format == "file"
    if rank == 0 and whole and not updating and not isinstance(error, ValueError):
        save("ckpt.pt")
        print(f"saved step {step} in {folder / 'ckpt.pt'} before stopping", file=sys.stderr)
    if reason := distributed.lost_contact(error):
        print(f"error: rank {rank} of {world_size}, update {step + 1}: {reason}", file=sys.stderr)
        sys.exit(2)
    previous_excepthook(kind, error, traceback)


def print_sample() -> None:
    """Print what the model writes now. Sampling has random numbers of its own: training does not notice."""
    if rank == 0 or strategy == "fsdp":  # fsdp: all ranks gather the weights together
        out.say(f"--- a sample at step {step} (data: {meta['name']}, sha256 {meta['sha256'][:12]})")
        following = stream_text(raw_model, text_tokenizer, prompt, **sampling)
        out.say(text_tokenizer.decode(prompt) + "".join(following))
        out.say("---")


# ---- the run to continue or to start from; processes, device, precision
folder = checkpoint.run_folder(out_dir)
architecture = {field.name for field in dataclasses.fields(GPTConfig)} & config.keys()
saved, changes = {}, []
if init_from == "auto":
    init_from = "resume" if checkpoint.newest(folder / "ckpt.pt").exists() else "scratch"
resume = init_from == "resume"
if init_from != "scratch":
    saved = checkpoint.load(checkpoint.find(init_from, folder), shards=resume)
    if resume and not {"optimizer", "shards"} & saved.keys():
        raise ValueError(f"{folder / 'ckpt.pt'} has no optimizer; start from it: --init_from={out_dir}")
    # a resumed run keeps all its settings, a fine-tuned one the shape of its base, but for what is given now
    everything = config.keys() - {"init_from", "out_dir", "eval_only"}
    shape = architecture - {"dropout", "gradient_checkpointing"}
    names = everything if resume else shape
    kept = {name: value for name, value in saved["config"].items() if name in names}
    changes = adopt(globals(), config, kept)  # sets what was not given now; says what differs
rank, world_size, device = distributed.start(device, backend, strategy, timeout)
autocast, dtype = hardware.choose_precision(dtype, device)
at_least(1, config, "batch_size block_size gradient_accumulation_steps max_iters eval_interval log_interval")
at_least(0, config, "epochs eval_iters patience min_delta grad_clip save_interval sample_interval")
at_least(1, config, "keep_checkpoints")
at_least(0, config, "seed max_new_tokens threads logits_mb global_batch_size")
batch_size, gradient_accumulation_steps = distributed.share_batch(
    global_batch_size, batch_size, gradient_accumulation_steps, world_size
)
windows_per_iter = batch_size * gradient_accumulation_steps * world_size
config["global_batch_size"] = windows_per_iter  # a resumed run keeps it, with any number of processes
if threads:
    torch.set_num_threads(threads)
torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
torch.manual_seed(seed)

# ---- the data: prepared by rank 0 if it is not there yet
if rank == 0:
    prepare.ensure(dataset)
distributed.barrier()
meta = prepare.ensure(dataset)
text_tokenizer = tokenizer.load_any(prepare.folder_of(dataset))
train_windows = data.Windows(dataset, "train", block_size, seed, pack)
val_windows = data.Windows(dataset, "val", block_size, seed, pack)

# ---- the model
model_config = GPTConfig(text_tokenizer.vocab_size, **{name: config[name] for name in architecture})
if saved:
    checkpoint.check_same(saved, model_config, text_tokenizer, out_dir if resume else init_from)
raw_model = GPT(model_config)  # stays free of compile and DDP
if "model" in saved:
    checkpoint.load_weights(raw_model, saved["model"], init_from)
model = raw_model = distributed.place(raw_model, device, strategy, dtype, offload)

# ---- the optimizer, the schedule, the loss scaler
tokens_per_iter = windows_per_iter * block_size
if epochs and ("epochs" in typed or "max_iters" not in typed):  # a typed max_iters beats a file's epochs
    max_iters = math.ceil(epochs * train_windows.n_windows / windows_per_iter)
schedule, schedule_warning = optim.resolve_schedule({**config, "max_iters": max_iters})
chosen = {**config, "dtype": dtype}  # not auto
optimizer = optim.build_optimizer(raw_model, chosen, device.type)
saver = checkpoint.Saver(folder, checkpoint_format, keep_checkpoints, rank)

# ---- where the run stands
step = tokens = best_step = bad_evals = skipped = 0  # skipped: updates that overflowed in float16
seconds = 0.0  # of training: evaluation, saving and sampling excluded
train_loss = val_loss = best_val_loss = math.inf
evaluated_at = -1  # the step of the last evaluation
stopping = 0  # above 0 once all processes know of a signal: they leave the loop at the same step
updating = False
if resume:
    checkpoint.restore(saved, raw_model, optimizer)
    step, tokens, seconds, evaluated_at = (saved[k] for k in ("step", "tokens", "seconds", "evaluated_at"))
    best_val_loss, best_step, bad_evals = (saved[k] for k in ("best_val_loss", "best_step", "bad_evals"))
    train_loss, val_loss = saved["train_loss"], saved["val_loss"]
    if step >= max_iters and not eval_only:
        if config["init_from"] != "auto":
            raise ValueError(f"{out_dir} has made {step} of {max_iters} updates; try --max_iters={2 * step}")
        if (folder / "result.json").exists():  # else it was killed between the last update and the end
            print(f"{out_dir} has already made its {max_iters} updates")
            sys.exit()

scaler = hardware.loss_scaler(dtype, device, saved["scaler"] if resume else {})
in_chunks = 0 < logits_mb * 2**18 < batch_size * block_size * text_tokenizer.vocab_size  # 4 bytes a logit
if compile:
    batch = [t.to(device) for t in train_windows.batch(0, batch_size)]  # x, y
    model = hardware.try_compile(model, batch[: 1 + in_chunks], autocast)
model = distributed.wrap(model, world_size, strategy)
if offload == "disk":
    from techniques.offload import to_disk

    to_disk(optimizer, folder)

# ---- what the reader should know before it starts
# One token of the sample now: a wrong --start must fail before the training, and before old files are gone.
prompt = prompt_ids(text_tokenizer, read_start(start), unknown="error" if "start" in given else "skip")
sampling = {name: config[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
next(stream_text(raw_model, text_tokenizer, prompt, **sampling), "")
floor = prepare.floor_per_token(meta, "val")
out = report.Report(folder, config, step if resume else -1, rank == 0, raw_model, device, floor)
if out.write:
    text_tokenizer.save(folder / "tokenizer.json")
if "stand_in_for" in meta:
    out.say(stand_in_notice(meta))
out.start(meta, optimizer, train_windows, val_windows, dtype)
out.length(max_iters, batch_size, gradient_accumulation_steps, world_size, train_windows)
for warning in filter(None, [schedule_warning, *(f"changed since the checkpoint: {c}" for c in changes)]):
    out.say(warning)
previous_excepthook, sys.excepthook = sys.excepthook, save_after_error
request = guard.StopRequest()

# ---- the loop
while True:
    # the learning rate of this update
    lr = optim.lr_at(step, **schedule)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

    # now and then, and at the end: evaluate on fixed windows, save, plot, perhaps stop early
    due = step % eval_interval == 0 or step == max_iters
    if eval_only or (due and step != evaluated_at):
        found_train, found_val = evaluate_both()
        train_loss, val_loss, evaluated_at = found_train["loss"], found_val["loss"], step
        bad_evals = 0 if val_loss < best_val_loss - min_delta else bad_evals + 1
        out.evaluation(step, tokens, seconds, train_loss, val_loss, found_val["standard_error"])
        if eval_only:
            sys.exit()
        if val_loss < best_val_loss:
            best_val_loss, best_step = val_loss, step
            save("best.pt")
        if always_save_checkpoint and step < max_iters:
            save("ckpt.pt")
        out.plot()
    if patience and bad_evals >= patience:  # also where a run was killed right after this evaluation
        out.say(f"no better val loss in {patience} evaluations: stopping early at step {step}")
        break
    if step >= max_iters or stopping:
        break

    started = time.perf_counter()
    torch.manual_seed(((seed * 1_000_003 + step) * world_size + rank) % 2**63)  # for dropout
    loss_sum, before = torch.zeros((), device=device), optim.versions(optimizer)
    try:
        # the batches of this update, and how many targets they have in all: over micro-steps and processes
        batches = [
            train_windows.batch(step, batch_size, micro_step, gradient_accumulation_steps, rank, world_size)
            for micro_step in range(gradient_accumulation_steps)
        ]
        targets = sum(int((y != -1).sum()) for _, y in batches)  # -1: not scored (data.py)
        targets, stopping = map(int, distributed.sum_over_ranks([targets, request.number], device))
        data_seconds = time.perf_counter() - started

        # forward, loss, backward
        for micro_step, (x, y) in enumerate(batches):
            distributed.sync_gradients(model, micro_step + 1 == len(batches))  # one exchange per update
            x, y = hardware.to_device(x, device), hardware.to_device(y, device)  # (B, T)
            with autocast:
                if in_chunks:
                    nats = model(x, y)  # the sum below, without holding all logits at once
                else:
                    logits = model(x)  # (B, T, V)
                    nats = F.cross_entropy(
                        logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum"
                    )
            loss = nats / max(targets, 1)  # sum, count, divide once: a mean over all targets of the update
            scaler.scale(loss * world_size).backward()  # DDP averages over processes; we want the sum
            loss_sum += loss.detach()

        # clip, step
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in raw_model.parameters() if p.grad is not None])
        grad_norm = distributed.gathered(norm).item()  # fsdp: each rank has the norm of its part
        guard.stop_if_not_finite(raw_model, step + 1, loss_sum.item(), grad_norm, chosen, lr)
        torch.nn.utils.clip_grads_with_norm_(raw_model.parameters(), grad_clip or math.inf, norm)
        updating = True  # between here and step += 1 the weights are of no step: do not save them
        scaler.step(optimizer)
    except (RuntimeError, MemoryError, OSError) as error:  # OSError: no room to read a batch
        whole = optim.versions(optimizer) == before
        factor = memory.divide_batch(error, batch_size, chosen, model_config.vocab_size, world_size, whole)
        batch_size, gradient_accumulation_steps = batch_size // factor, gradient_accumulation_steps * factor
        out.say(f"out of memory: going on with {batch_size=}, {gradient_accumulation_steps=}")
        config["batch_size"] = batch_size  # a resumed run keeps it
        logits = nats = loss = None  # their memory, too
        optimizer.zero_grad(set_to_none=True)
        memory.give_back()
        scaler, updating = hardware.loss_scaler(dtype, device, scaler.state_dict()), False
        continue  # with the same step, so with the same windows
    scaler.update()
    skipped += not math.isfinite(grad_norm)  # an overflow in float16: scaler.step() has made none
    optimizer.zero_grad(set_to_none=True)
    step += 1
    tokens += tokens_per_iter
    updating = False

    # report
    elapsed = time.perf_counter() - started
    seconds += elapsed
    out.count_update(elapsed, data_seconds)
    if step % log_interval == 0:
        (loss_sum,) = distributed.sum_over_ranks([loss_sum.item()], device)
        out.iteration(step, tokens, seconds, loss_sum, lr, grad_norm, skipped)
    if sample_interval and step % sample_interval == 0:
        print_sample()
    if save_interval and step % save_interval == 0:
        save(f"ckpt_{step:06}.pt")

# ---- the end: what is saved where, how good it is, what it sounds like
save("ckpt.pt")
saver.wait()
if stopping and step < max_iters:
    how = "python" if world_size == 1 else f"torchrun --nproc_per_node={world_size}"
    out.say(f"stopped at step {step}, saved; go on: {how} train.py --init_from=resume --out_dir={out_dir}")
    sys.exit()
print_sample()
losses = dict(final_train_loss=train_loss, final_val_loss=val_loss, best_val_loss=best_val_loss)
n_params = sum(p.numel() for p in raw_model.parameters())
out.finish(**losses, best_step=best_step, training_time=seconds, parameters=n_params)
distributed.barrier()  # rank 0 has more to do at the end; the others wait, and all leave together
