"""ids -> more ids: tokens drawn one by one, with the keys and values of all earlier ones kept in a cache.

Without a cache, token number t needs a forward pass over t tokens, so n tokens need n^2 / 2; with it, each
needs a pass over one. GPT.stream() and GPT.generate() in model.py are the way in.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from config import require

AHEAD = 1024  # uniform numbers that are drawn at once for a row, one for each token


class Cache:
    """The KV cache of one layer: a tensor of keys and values that is filled from the left.

    columns: room for so many tokens. static: attention reads all columns, with a mask over those still empty,
    and the place to write to is itself a tensor. So every step has the same shapes and addresses, and its
    kernels can be recorded (below). On a CPU recording gains nothing, and reading fewer columns is faster.
    length: how many tokens; with static those of the prompt, as a number of Python's would be recorded, too.
    """

    def __init__(self, columns: int, static: bool = False):
        self.columns, self.static = columns, static
        self.length = 0

    def append(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """k and v (B,K,T,hs) of new tokens -> those of all tokens so far, (B,K,length,hs), or all columns.

        Or any number of tensors of one shape: techniques/latent.py keeps a single one.
        """
        new = torch.stack(tensors)  # (2,B,K,T,hs)
        n, B, K, T, hs = new.shape
        if self.length == 0:
            self.kv = new.new_zeros(n, B, K, self.columns, hs)
            self.position = torch.full((1,), T, device=new.device)  # of the next token
        if self.length and self.static:
            self.kv.index_copy_(3, self.position, new)
            self.position += 1
            return self.kv.unbind()
        self.kv[:, :, :, self.length : self.length + T] = new
        self.length += T
        return self.kv[:, :, :, : self.length].unbind()

    def previous(self, x: Tensor) -> Tensor:
        """The token before each token of x (B,T,C). The first token's value is arbitrary; Past zeroes it."""
        if self.length == 0:
            self.last = x[:, -1:].clone()
            return x.roll(1, dims=1)
        previous = self.last.clone()
        self.last.copy_(x)
        return previous


class Past:
    """What a layer needs beside the tokens that it reads: its KV cache and its attention mask.

    mask: bool (B or 1,1,T,keys), True where a query may attend to a key; None: causal. With static caches it
    is what is added to the scores, 0 or -inf.
    first: bool (B or 1,T,1), True for tokens that have no token before them.
    """

    def __init__(self, cache: Cache | None, mask: Tensor | None, first: Tensor):
        self.cache, self.mask, self.first = cache, mask, first

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """k and v (B,K,T,hs) of the new tokens -> those of all tokens so far, (B,K,keys,hs)."""
        return new if self.cache is None else self.cache.append(*new)

    def previous(self, x: Tensor) -> Tensor:
        """The token before each token of x (B,T,C); zeros where there is none."""
        previous = x.roll(1, dims=1) if self.cache is None else self.cache.previous(x)
        return previous.masked_fill(self.first, 0.0)


def visible(queries: Tensor, keys: int, window: int = 0) -> Tensor:
    """Columns of queries (T) -> bool (T,keys), True where a query may attend to a key: none that comes later.

    window: of the earlier ones only the last window - 1; 0: all (Child et al., 2019; Mistral, 2023).
    """
    key, query = torch.arange(keys, device=queries.device), queries[:, None]  # (keys), (T,1)
    mask = key <= query
    return mask & (key > query - window) if window else mask


def reading(
    config, idx: Tensor, caches: Sequence[Cache] | None = None, pad: Tensor | None = None
) -> tuple[Tensor, list[Past] | None]:
    """(positions (B or 1,T), one Past a layer) of a pass over ids idx (B,T), for GPT.trunk().

    caches: one a layer; idx holds what they have not read yet, the whole prompt or one token. pad (B,1): how
    many columns at the left of each row are padding; None: none. Without caches and padding a pass is as in
    training: no Past. ValueError for more tokens than block_size.
    """
    T, start = idx.size(1), caches[0].length if caches else 0
    require(
        start + T <= config.block_size, f"{start + T} tokens do not fit into block_size={config.block_size}"
    )
    assert start == 0 or T == 1, "between a whole prompt and one token, is_causal would be wrong"
    static = start > 0 and caches[0].static
    columns = caches[0].position if static else torch.arange(start, start + T, device=idx.device)  # (T)
    positions = columns[None]  # (1,T)
    if pad is None and caches is None:
        return positions, None
    mask = None
    keys = caches[0].columns if static else start + T
    if pad is not None or static or 0 < config.window < keys:
        mask = visible(columns, keys, config.window)[None, None]  # (1,1,T,keys)
    if pad is not None:
        key, query = torch.arange(keys, device=idx.device), columns[:, None]  # (keys), (T,1)
        seen = key >= torch.minimum(pad[..., None], query)  # (B,T,keys); padding sees itself: no NaN
        mask = mask & seen[:, None]  # (B,1,T,keys)
        positions = (positions - pad).clamp(min=0)  # (B,T)
    if static:  # added to the scores; each layer would make the same of a bool mask
        scores = torch.zeros(mask.shape, dtype=caches[0].kv.dtype, device=mask.device)
        mask = scores.masked_fill_(~mask, -math.inf)  # (B or 1,1,T,keys)
    first = positions[..., None] == 0  # (B or 1,T,1)
    return positions, [Past(cache, mask, first) for cache in caches or [None] * config.n_layer]


class Recorded:
    """A step whose kernels are recorded once and then replayed (CUDA graphs): nothing is launched one by one.

    step: (B,1) token ids -> (B,1) ids that follow them, with static caches. As it draws, too, a token costs
    one replay and the copy of B ids that stream() reads. Elsewhere than on CUDA the step is called each time.
    One H100, 124M parameters, batch 1: 1,051 tokens/s with the draw outside, and 226 without recording.
    """

    def __init__(self, step: Callable, new: Tensor):
        self.step, self.new, self.graph = step, new.clone(), None
        self.records, self.calls = new.device.type == "cuda", 0

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.records and self.calls == 2:  # the first call was the warm-up
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and runs nothing
                self.advance()
        if self.graph is None:
            self.advance()
        else:
            self.graph.replay()
        return self.new

    def advance(self) -> None:
        self.new.copy_(self.step(self.new))


@torch.no_grad()  # not inference_mode: fsdp could not gather weights in it
def stream(
    model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_tokens: Sequence[int] = (),
    seed: int = 1337,
    graph: bool = False,
    compile: bool = False,
) -> Iterator[list[int]]:
    """Yield one new id for each prompt, step by step; -1 for a prompt that has met a stop token.

    Row i draws from its own generator, seeded with seed + i: its text does not depend on the other rows. When
    the context is full, each new token shifts all positions, so the last block_size tokens are read again.
    temperature, top_k, top_p: see token_probs(). graph: record the step of one token and replay it on CUDA,
    until the context is full. compile: compile that step first, which takes a minute and joins its kernels.
    Raises ValueError for bad prompts and settings.
    """
    V, block_size, device = model.config.vocab_size, model.config.block_size, model.norm.weight.device
    prompts = [[int(i) for i in row] for row in prompts]
    strange = [i for row in prompts for i in row if not 0 <= i < V]
    require(not strange, f"token ids {strange[:5]} are outside the vocabulary of {V}; wrong tokenizer?")
    require(len(prompts) > 0, "there is no prompt; expected a list of lists of token ids")
    require(min(map(len, prompts)) > 0, "a prompt is empty; it needs at least one token")
    require(temperature >= 0 and top_k >= 0, f"temperature={temperature} or top_k={top_k} is below 0")
    require(max_new_tokens >= 0, f"max_new_tokens={max_new_tokens} is below 0")
    require(0 < top_p <= 1, f"top_p={top_p} must be above 0 and at most 1, which keeps all tokens")
    require(graph or not compile, "compile=True is for the step that graph=True records; add graph=True")
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(row)) + row for row in prompts]
    pad = None
    if min(map(len, prompts)) < longest:  # how many columns at the left of each row are padding
        pad = torch.tensor([[longest - len(row)] for row in prompts], device=device)  # (B,1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    columns = min(block_size, longest + max_new_tokens)
    columns += -columns % 16 if graph else 0  # CUDA's attention copies a mask of another width in each layer
    caches = [Cache(columns, static=graph) for _ in model.blocks]
    running = [True] * len(prompts)
    ahead = min(max_new_tokens, AHEAD)  # drawn outside of the step, so that it can be recorded
    uniform = torch.empty(len(prompts), ahead, device=device)  # one column a token
    turn = torch.zeros(1, dtype=torch.long, device=device)

    def step(unread: Tensor) -> Tensor:
        """Ids that were not read yet (B,T) -> the ids that follow them (B,1), or V: see draw()."""
        logits = model.next_logits(unread, caches, pad)  # (B,V)
        drawn = uniform.index_select(1, turn).to(logits.device)  # (B,1)
        turn.add_(1)
        return draw(logits, drawn, temperature, top_k, top_p).to(device)

    # As in gpt-fast (2023): with this option a product with one row is a sum, fused with what surrounds it.
    tuned = {"coordinate_descent_tuning": True}
    of_one = torch.compile(step, dynamic=False, options=tuned) if compile else step
    was_training = model.training
    model.eval()
    recorded, new = None, torch.tensor(rows, device=device)
    try:
        for n in range(max_new_tokens):
            if n % ahead == 0:
                uniform.copy_(torch.stack([torch.rand(ahead, generator=g) for g in generators]))
                turn.zero_()
            surplus = len(rows[0]) - block_size
            if surplus > 0:
                rows = [row[surplus:] for row in rows]
                pad = (pad - surplus).clamp(min=0) if pad is not None else None
                new, caches, graph = torch.tensor(rows, device=device), None, False
            if graph and n > 0:
                recorded = recorded or Recorded(of_one, new)
                new = recorded()
            else:
                new = step(new)
            ids = new[:, 0].tolist()  # here, and only here, the program waits for the device
            require(
                max(ids) < V, f"the logits are NaN or infinite, or temperature={temperature} is too small"
            )
            for row, i in zip(rows, ids, strict=True):
                row.append(i)
            running = [r and i not in stop_tokens for r, i in zip(running, ids, strict=True)]
            if not any(running):
                return
            yield [i if r else -1 for r, i in zip(running, ids, strict=True)]
    finally:
        model.train(was_training)


def generate(
    model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_tokens: Sequence[int] = (),
    seed: int = 1337,
    graph: bool = False,
    compile: bool = False,
) -> list[list[int]]:
    """The prompts with their continuations, without the stop tokens. Arguments as in stream()."""
    options = temperature, top_k, top_p, stop_tokens, seed, graph, compile
    new = list(stream(model, prompts, max_new_tokens, *options))
    return [[*map(int, row)] + [ids[i] for ids in new if ids[i] >= 0] for i, row in enumerate(prompts)]


def draw(logits: Tensor, drawn: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Float32 logits (B,V), which are overwritten, and uniform numbers drawn (B,1) -> token ids (B,1).

    The id is V in a row that holds NaN or infinity, or whose probabilities do: the temperature is too small.
    """
    V = logits.size(-1)
    # 32 rows of 50,304 on one core: 0.4 ms each; logits.isfinite().all() makes copies and takes 10.
    high, low = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)  # (B,1), NaN if one is
    if temperature > 0 and top_k != 1:
        logits, temperature = logits.div_(temperature), 1.0
    sums = token_probs(logits, temperature, top_k, top_p).cumsum_(dim=-1)  # (B,V)
    new = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)  # (B,1), first above drawn
    return new.masked_fill_(~(high.isfinite() & low.isfinite()), V)


def token_probs(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Float32 logits (B,V) -> probabilities (B,V) to draw with, up to a factor: not yet divided by their sum.

    top_k keeps the k likeliest tokens (Fan et al., 2018), top_p the likeliest ones that together reach p, the
    one that crosses p included (Holtzman et al., 2019). temperature 0 and top_k 1 keep the likeliest only.
    """
    if temperature == 0 or top_k == 1:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    if 0 < top_k < logits.size(-1):
        values, tokens = logits.topk(top_k)  # (B,k)
        logits = torch.full_like(logits, -math.inf).scatter_(-1, tokens, values)
    probs = torch.softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    if top_p < 1:
        ordered, tokens = probs.sort(dim=-1, descending=True)
        likelier = ordered.cumsum(dim=-1) - ordered  # the sum of all likelier tokens
        probs.scatter_(-1, tokens, ordered.masked_fill_(likelier >= top_p, 0.0))
    return probs
