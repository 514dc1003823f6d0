"""Train a language model: settings on top, then one visible loop: forward, loss, backward, clip, step.

python train.py config/shakespeare_char.py                         prepare, train, evaluate, save, sample
python train.py config/tiny.py --max_iters=50 --learning_rate=1e-3  change any setting below
python train.py --init_from=resume --out_dir=out-tiny               go on exactly where a run stopped
torchrun --standalone --nproc_per_node=4 train.py config/base.py    several GPUs (-h lists all settings)
"""

import dataclasses
import time

from config import end_script, given, leave, override  # isort: skip
import torch

import data
import optim
import techniques
from evaluate import evaluate, fixed_windows
from machine import distributed, hardware, speed
from machine.stages import Stages
from machine.threads import Threads, gradients_of
from model import GPT, summed_nats
from runtime import checkpoint, guard, memory, origin, report, resolve, transfer
from sample import prompt_ids, read_start, stream_text
from text import corpora, settle
from text.dataset import floor_per_token

# -----------------------------------------------------------------------------
# the run
out_dir = "out"  # folder for checkpoints, metrics and plots; a relative one lies in the project's folder
init_from = "scratch"  # scratch | resume | resume:FILE | auto: resume or scratch | PATH of a run or model
eval_only = False  # evaluate once, write no checkpoint, stop
seed = 1337  # initial weights, order of the data and dropout are functions of it
# the data
dataset = "shakespeare_char"  # PATH of a text, in datasets/, or known: shakespeare_bpe verse python sums
batch_size = 32  # windows (sequences) per micro-step and process
block_size = 128  # tokens per window: the context length
gradient_accumulation_steps = 1  # micro-steps per update and process (not divided by the processes)
global_batch_size = 0  # windows per update over all processes; sets the micro-steps; 0 = off
pack = True  # prompt/response data: several samples per window; False: one, batched by similar length
# the model
arch = "modern"  # modern | gpt2 | llama: chooses what the next nine leave open
norm = ""  # '' as arch says | layernorm | rmsnorm
position = ""  # '' as arch says | learned | rope
activation = ""  # '' as arch says | relu2 | gelu | gelu_erf | swiglu
token_shift = -1  # half of attention's input channels come from the previous token: -1 as arch says | 0 | 1
qk_norm = -1  # normalise queries and keys: -1 as arch says | 0 | 1 | 2 with learned weights
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
technique = ""  # files in techniques/, joined by commas; each has settings of its own
logits_mb = -1  # above so many MB of logits, compute the loss in chunks; 0 = never; -1: 256, or 1/16 of a GPU
gradient_checkpointing = False  # recompute activations in backward: less memory, about a third more time
# the optimizer
optimizer = "muon"  # muon | adamw | adam | sgd
learning_rate = 3e-3  # peak, of everything that is not under Muon
muon_lr = 0.02  # peak, of the matrices inside the blocks, with optimizer=muon
muon_momentum = 0.95  # Muon's (and SGD's) momentum
weight_decay = 0.1  # pulls matrices towards zero (muon: those in the blocks); adam, sgd: as L2
beta1 = 0.9  # Adam, AdamW: decay of the running mean of the gradient
beta2 = 0.95  # Adam, AdamW: decay of the running mean of its square
grad_clip = 1.0  # largest gradient norm; 0 = no clipping
freeze = ""  # parameters that stay as they are, by name or pattern: 'wte,blocks.0'  'blocks.[0-5]'  '*.mlp'
layer_lr_decay = 1.0  # fine-tuning: multiplies the learning rate once for each block further down
# the schedule, counted in updates
max_iters = 1000  # number of updates (optimizer steps)
epochs = 0.0  # passes over the training split instead of max_iters; 0 = use max_iters
lr_schedule = "trapezoid"  # constant | linear | cosine | step | polynomial | trapezoid
decay_lr = True  # False: constant after the warm-up
warmup_iters = 0  # updates of linear warm-up
warmup_ratio = 0.0  # the same as a share of lr_decay_iters; set one of the two
lr_decay_iters = -1  # where the schedule ends; -1 = max_iters
min_lr = -1.0  # where learning_rate ends (muon_lr falls in proportion); -1 = a tenth of it
lr_cooldown = 0.5  # trapezoid: the learning rate falls over this last share of the run
lr_power = 1.0  # polynomial: exponent
lr_step_iters = 1000  # step: updates between two cuts
lr_gamma = 0.1  # step: factor of each cut
# evaluation, saving, reporting
eval_interval = 250  # updates between two evaluations
eval_iters = 20  # an evaluation reads this x 4,096 tokens of train and val, always the same; 0 = size of val
log_interval = 10  # updates between two progress lines
patience = 0  # stop after so many evaluations without a better val loss; 0 = off
min_delta = 0.0  # early stopping: by how much val loss must fall to count as better
expected = {}  # normal val losses, {step: (lowest, highest)}: the last lines compare (runtime/curve.py)
always_save_checkpoint = True  # ckpt.pt after each evaluation; False: best.pt only, and ckpt.pt at the end
save_interval = 0  # numbered checkpoints every so many updates; 0 = off
keep_checkpoints = 5  # how many numbered ones to keep
checkpoint_format = "file"  # file | sharded: each process writes its shard, in the background (large models)
sample_interval = 0  # print a sample every so many updates; 0 = only at the end
tensorboard = False  # also write TensorBoard files to out_dir (pip install tensorboard)
wandb_log = False  # also send the numbers to Weights & Biases (pip install wandb)
wandb_project = "tinylm"  # project there
wandb_run_name = ""  # name of the run there; '' = out_dir
# text samples; sample.py reads these from the checkpoint
start = "\n"  # the sample's prompt, or FILE:prompt.txt
max_new_tokens = 500  # length of the sample in tokens
temperature = 0.8  # below 1 safer, above 1 wilder; 0 = always the likeliest token
top_k = 0  # choose among the k likeliest tokens; 0 = all
top_p = 1.0  # choose among the likeliest tokens that make up this probability; 1 = all
# the machine
device = "auto"  # auto | cpu | cuda | cuda:N | mps
dtype = "auto"  # auto | float32 | bfloat16 | float16 (with a loss scaler)
compile = False  # torch.compile: faster after a minute or so of compiling
backend = "auto"  # between processes: auto | nccl | gloo
strategy = "ddp"  # processes share: ddp the batch | zero1 also optimizer state | fsdp also weights
offload = ""  # where the optimizer state is kept: '' on the device | cpu (on a GPU: weights, too) | disk
timeout = 600.0  # seconds that a process waits for the others before it gives up
threads = 0  # CPU threads; 0 = a new run times 1, half and all cores, and keeps the fastest
oom_retry = True  # one process, out of memory: smaller batches, more micro-steps, the same gradient
# -----------------------------------------------------------------------------
config = override(globals())  # each name above now has the value of its file or of the command line

# ---- the run to resume or to start from; what was not given now comes from its checkpoint
folder = checkpoint.run_folder(out_dir)
stages = Stages("reading the checkpoint")  # until the first update, what takes over two seconds says so
saved, resume = origin.base_of(init_from, folder, eval_only)  # {} and False for a run from scratch
changes = resolve.take_over(globals(), config, saved, resume)

# ---- processes, device, precision
stages.begin("starting the device, waiting for other processes")
rank, world_size, torch_device = distributed.start(device, backend, strategy, timeout)
autocast, precision = hardware.choose_precision(dtype, torch_device)
resolved = resolve.for_device(config, precision, torch_device)  # dtype not auto, logits_mb not -1
micro_steps = gradient_accumulation_steps  # of an update, on each process
batch_size, micro_steps = distributed.share_batch(global_batch_size, batch_size, micro_steps, world_size)
changes += resolve.check_batch(config, batch_size, micro_steps, world_size)
windows_per_iter = config["global_batch_size"] = batch_size * micro_steps * world_size  # kept on resuming
torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
torch.set_num_threads(threads or torch.get_num_threads())  # now: compiled code is for this number alone
torch.manual_seed(seed)

# ---- the data
stages.begin(f"reading the dataset {dataset}")
dataset, meta = settle.settle(dataset, rank, resume)  # rank 0 prepares what is not there yet
config["dataset"] = dataset  # not the path of a text, but the name of what was made from it
if resume:
    settle.require_same(saved, meta, dataset, out_dir)
text_tokenizer = settle.tokenizer_of(dataset)
train_windows = data.open_windows(dataset, "train", block_size, seed, pack)
train_windows.keep_on(torch_device, hardware.free_bytes(torch_device) / 20)
train_windows = techniques.change("change_data", train_windows, config)
val_windows = data.open_windows(dataset, "val", block_size, seed, pack)
train_set, val_set = fixed_windows(train_windows, val_windows, eval_iters)  # the same in each evaluation

# ---- the model and its loss
stages.begin("building the model and its optimizer")
changes += transfer.fit({} if resume else saved, config, text_tokenizer, init_from)  # fine-tuning
raw_model = GPT(memory.shape_of(config, text_tokenizer.vocab_size, saved.get("model_config")))
raw_model = origin.put_weights(saved, raw_model, config, text_tokenizer, out_dir if resume else init_from)
raw_model = techniques.change("change_model", raw_model, config, origin.new_techniques(saved, technique))
raw_model = distributed.place(raw_model, torch_device, strategy, precision, offload)
own_loss = techniques.hooks("loss", config)  # one at most
in_chunks = memory.too_many_logits(batch_size * block_size, text_tokenizer.vocab_size, resolved["logits_mb"])


def summed_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Ids x and targets y (B,T), -1: not scored -> summed nats. Compiled, it never holds float32 logits."""
    if own_loss:  # a technique's, in place of cross-entropy
        return own_loss[0](model, x, y)
    if in_chunks:
        return model(x, y)  # the same sum, without all logits in memory at once
    logits = model(x)  # (B,T,V)
    return summed_nats(logits, y)


# ---- the optimizer, its schedule, the loss scaler
max_iters, length_notes = resolve.updates(config, train_windows.n_windows, windows_per_iter)
schedule, schedule_warning = optim.resolve_schedule(config)
changes += length_notes + resolve.unused({**config, **vars(raw_model.config)}, world_size)
opt = optim.build_optimizer(raw_model, resolved, torch_device.type)
trained = [p for p in raw_model.parameters() if p.requires_grad]  # once: to list 6 layers takes 0.3 ms
model = distributed.wrap(raw_model, world_size, strategy)  # after freezing: DDP waits for what is trained

# ---- where the run stands
saved = checkpoint.restore(saved, raw_model, opt, init_from in ("resume", "auto")) if resume else {}
progress = origin.progress_of(saved)  # step, tokens, seconds, losses: the numbers that a resumed run needs
changes += origin.starting_point(progress, saved, max_iters, init_from)
scaler = hardware.loss_scaler(precision, torch_device, saved.get("scaler", {}))
if progress.step >= max_iters and not eval_only and origin.nothing_left(progress, init_from, folder):
    leave()
if offload == "disk":
    techniques.load("offload")[0].to_disk(opt, folder)
stages.say(speed.slow_update(raw_model, max_iters, batch_size, micro_steps, autocast, torch_device))
if compile:
    stages.begin("compiling")
    once = windows_per_iter == batch_size and strategy == "ddp" and not own_loss  # one micro-step an update
    summed_loss = hardware.try_compile(summed_loss, model, train_windows.batch(0, batch_size), autocast, once)
trial = gradients_of(raw_model, summed_loss, train_windows, batch_size, autocast)

# ---- sample one token: a wrong --start must fail before training, and before an old run is overwritten
unknown = "error" if "start" in given else "skip"
prompt = prompt_ids(text_tokenizer, read_start(start), unknown, meta.get("turns", False))
sampling = {name: config[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
next(stream_text(raw_model, text_tokenizer, prompt, **sampling), "")
floor = floor_per_token(meta, "val")
old_step = progress.step if resume else -1
saver = checkpoint.Saver(folder, checkpoint_format, keep_checkpoints, rank)
reporter = report.Report(folder, config, old_step, rank == 0, raw_model, torch_device, floor)
reporter.say(corpora.stand_in_notice(meta), schedule_warning, *changes)
stages.begin("timing updates, to choose the number of threads")
may_choose = not (resume or compile) and world_size == 1 and torch_device.type == "cpu"
chooser = Threads(config, may_choose, trial, reporter.say)
reporter.start(meta, text_tokenizer, opt, train_windows, val_windows, precision)
reporter.length(max_iters, batch_size, micro_steps, world_size, train_windows)


# ---- what the loop calls; these functions read the settings and the state of this script
def save(name: str) -> None:
    """Write the whole state of the run to out_dir/name: enough to resume, evaluate and sample."""
    watch.read()  # nothing is saved after a bad update
    state = dict(
        model_config=dataclasses.asdict(raw_model.config), tokenizer=text_tokenizer.to_json(), dataset=meta,
        config=config, scaler=scaler.state_dict(), world_size=world_size, **dataclasses.asdict(progress),
    )  # fmt: skip
    reporter.say(saver.save(name, state, raw_model, opt))


def print_sample() -> None:
    """Print what the model writes now. Sampling has random numbers of its own: training does not notice."""
    if rank == 0 or strategy == "fsdp":  # fsdp: all ranks gather the weights together
        new = "".join(stream_text(raw_model, text_tokenizer, prompt, **sampling))
        reporter.sample(progress.step, meta, text_tokenizer.decode(prompt) + new)


after_steps = techniques.hooks("after_step", config)
stopping = 0  # above 0 once all processes know of a signal: they leave the loop at the same step
watch = guard.Watch(raw_model, opt, resolved, torch_device)
attempt = memory.Attempt(opt, resolved, batch_size, micro_steps, text_tokenizer.vocab_size)
stop_request = guard.StopRequest()
may_save = rank == 0 and strategy == "ddp" and checkpoint_format == "file"  # this rank has all of the state
guard.call_after_error(lambda: may_save and not attempt.in_the_middle(), save, progress)

# ---- the loop
stages.begin("the first evaluation, then the first update")
while True:
    # the learning rate of this update
    lr = optim.lr_at(progress.step, **schedule)
    for group in opt.param_groups:
        group["lr"] = lr * group["lr_scale"]

    # every eval_interval updates and at the end: evaluate on fixed windows, save, plot, perhaps stop early
    due = progress.step % eval_interval == 0 or progress.step == max_iters
    if eval_only or (due and progress.step != progress.evaluated_at):
        on_train = evaluate(raw_model, *train_set, torch_device, autocast, rank, world_size)
        on_val = evaluate(raw_model, *val_set, torch_device, autocast, rank, world_size)
        is_best = progress.note_losses(on_train["loss"], on_val["loss"], min_delta)
        reporter.evaluation(progress, on_val["standard_error"], on_val["by_corpus"])
        if eval_only:
            leave()
        if is_best:
            save("best.pt")
        if always_save_checkpoint and progress.step < max_iters:
            save("ckpt.pt")
        reporter.plot()
    if patience and progress.bad_evals >= patience:  # here: a run killed after that evaluation stops, too
        reporter.say(f"no better val loss in {patience} evaluations: stopping early at step {progress.step}")
        break
    if progress.step >= max_iters or stopping:
        break

    # the update; if memory runs out before a weight has changed, the next turn takes smaller micro-batches
    started = time.perf_counter()
    with attempt:
        # all micro-batches first: the loss is divided by the targets in all of them (reading takes 2 %)
        torch.manual_seed(((seed * 1_000_003 + progress.step) * world_size + rank) % 2**63)  # for dropout
        batches = [
            train_windows.batch(progress.step, batch_size, i, micro_steps, rank, world_size)
            for i in range(micro_steps)
        ]
        targets = sum(data.count_targets(y) for _, y in batches)  # -1: not scored (data.py)
        targets, stopping = map(int, distributed.sum_over_ranks([targets, stop_request.number], torch_device))
        data_seconds = time.perf_counter() - started

        # forward, loss, backward
        total_loss = torch.zeros((), device=torch_device)
        for i, (x, y) in enumerate(batches):
            distributed.sync_gradients(model, i + 1 == len(batches))  # exchanged once per update
            x, y = hardware.to_device(x, torch_device), hardware.to_device(y, torch_device)  # (B,T)
            with autocast:
                nats = summed_loss(x, y)
            loss = nats / max(targets, 1)  # summed over micro-steps and ranks: the mean of all targets
            scaler.scale(loss * world_size).backward()  # DDP averages over processes; we want the sum
            total_loss += loss.detach()

        # clip, step
        scaler.unscale_(opt)
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        watch.before_step(progress.step + 1, total_loss, norm, lr)  # stops if they are not finite
        torch.nn.utils.clip_grads_with_norm_(trained, grad_clip or torch.inf, norm)
        scaler.step(opt)
        scaler.update()
    opt.zero_grad(set_to_none=True)
    if attempt.failed:
        batch_size, micro_steps = attempt.batch_size, attempt.micro_steps
        config["batch_size"] = batch_size  # a resumed run keeps it
        reporter.write_settings()
        nats = loss = None  # they keep the activations alive
        reporter.say(attempt.give_back())
        scaler = hardware.loss_scaler(precision, torch_device, scaler.state_dict())
        continue  # with the same step, so with the same windows
    progress.step += 1
    for after_step in after_steps:
        after_step(raw_model, progress.step)
    progress.tokens += windows_per_iter * block_size

    # report
    stages.end()
    arrived = watch.numbers(now=progress.step % log_interval == 0)  # a GPU: mostly those of the update before
    elapsed = time.perf_counter() - started
    progress.seconds += elapsed
    reporter.count_update(progress, elapsed, data_seconds, arrived)
    chooser.after_update(elapsed)
    if progress.step % log_interval == 0:
        _, nats_per_target, grad_norm = arrived[-1]
        (mean_loss,) = distributed.sum_over_ranks([nats_per_target], torch_device)
        reporter.iteration(progress, mean_loss, lr, grad_norm)
    if sample_interval and progress.step % sample_interval == 0:
        print_sample()
    if save_interval and progress.step % save_interval == 0:
        save(f"ckpt_{progress.step:06}.pt")

# ---- the end: what is saved where, how good it is, what it sounds like
save("ckpt.pt")
saver.wait()
if stopping and progress.step < max_iters:
    reporter.stopped(progress)
    leave()
print_sample()
reporter.finish(progress)
distributed.barrier()  # rank 0 has more to do at the end; the others wait for it
end_script()
