// ids -> logits -> text: model.py, generate.py and tokenizer.py in plain JavaScript, for techniques/share.py.
//
//     idx (T) -> wte (T,C) -> n_layer times: x += attn(norm(x)), x += mlp(norm(x)) -> norm -> head (T,V)
//
// Read it beside model.py: same names, same order. There is one row (B = 1), and always a cache: a whole pass
// begins with an empty one. Arrays are flat: x[t * C + c] is channel c of token t, in float64. Weights stay
// int8 codes with one scale a row.
"use strict";

const { fround } = Math; // to float32: where model.py's rounding is large enough to be seen

class Linear {
  // (T,in) -> (T,out). weight: {n_in, n_out, codes (out,in) int8, scales (out)}; row = scale * codes.
  constructor(weight, bias) {
    Object.assign(this, weight, { bias });
  }

  forward(x, T) {
    const y = new Float64Array(T * this.n_out);
    if (T < 4) this.one_by_one(x, T, y);
    else this.four_at_once(x, T, y);
    if (this.bias) for (let i = 0; i < y.length; i++) y[i] += this.bias[i % this.n_out];
    return y;
  }

  // Two rows at a time: the processor adds both sums side by side.
  one_by_one(x, T, y) {
    const { n_in, n_out, codes, scales } = this;
    for (let t = 0; t < T; t++) {
      for (let o = 0; o < n_out; o += 2) {
        const next = Math.min(o + 1, n_out - 1); // the last of an odd number of rows is its own neighbour
        let a = 0, b = 0;
        for (let i = 0, row = o * n_in, below = next * n_in, from = t * n_in; i < n_in; i++) {
          a += codes[row + i] * x[from + i];
          b += codes[below + i] * x[from + i];
        }
        y[t * n_out + o] = scales[o] * a;
        y[t * n_out + next] = scales[next] * b;
      }
    }
  }

  // The same sums, four tokens and two rows at a time: 1.4 in place of 0.4 billion products a second.
  four_at_once(x, T, y) {
    const { n_in, n_out, codes, scales } = this;
    const groups = Math.ceil(T / 4);
    const packed = new Float64Array(groups * n_in * 4); // (groups, in, 4): four tokens side by side
    for (let t = 0; t < T; t++) {
      const to = (t >> 2) * n_in * 4 + (t & 3);
      for (let i = 0; i < n_in; i++) packed[to + 4 * i] = x[t * n_in + i];
    }
    const rows = new Float64Array(2 * n_in); // two rows of codes side by side
    const put = (t, o, sum) => { if (t < T) y[t * n_out + o] = scales[o] * sum; };
    for (let o = 0; o < n_out; o += 2) {
      const next = Math.min(o + 1, n_out - 1);
      for (let i = 0; i < n_in; i++) {
        rows[2 * i] = codes[o * n_in + i];
        rows[2 * i + 1] = codes[next * n_in + i];
      }
      for (let g = 0, p = 0; g < groups; g++) {
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        for (let j = 0; j < 2 * n_in; j += 2, p += 4) {
          const a = rows[j], b = rows[j + 1];
          const x0 = packed[p], x1 = packed[p + 1], x2 = packed[p + 2], x3 = packed[p + 3];
          a0 += a * x0; a1 += a * x1; a2 += a * x2; a3 += a * x3;
          b0 += b * x0; b1 += b * x1; b2 += b * x2; b3 += b * x3;
        }
        put(4 * g, o, a0); put(4 * g + 1, o, a1); put(4 * g + 2, o, a2); put(4 * g + 3, o, a3);
        put(4 * g, next, b0); put(4 * g + 1, next, b1); put(4 * g + 2, next, b2); put(4 * g + 3, next, b3);
      }
    }
  }

  // Add row number id to x at place `at`: wte is such a matrix, too.
  add_row(id, x, at) {
    for (let i = 0; i < this.n_in; i++) x[at + i] += this.scales[id] * this.codes[id * this.n_in + i];
  }
}

// Rotary positions (Su et al., 2021) -> cos and sin (T, hs/2) of positions start to start + T - 1.
function rope_tables(start, T, { head_size, rope_theta, rope_scaling }) {
  const half = head_size / 2, powers = new Float64Array(half);
  for (let i = 0; i < half; i++) powers[i] = fround(rope_theta ** fround((-2 * i) / head_size));
  const frequencies = stretched(powers, rope_scaling);
  const cos = new Float64Array(T * half), sin = new Float64Array(T * half);
  for (let i = 0; i < T * half; i++) {
    const angle = fround((start + Math.floor(i / half)) * frequencies[i % half]);
    cos[i] = Math.cos(angle);
    sin[i] = Math.sin(angle);
  }
  return { cos, sin };
}

// Divide rotary frequencies by FACTOR; llama3 leaves the fast ones, which turn often in ORIGINAL tokens.
function stretched(frequencies, scaling) {
  if (!scaling) return frequencies;
  const [kind, ...words] = scaling.trim().split(/\s+/);
  const [factor, low, high, original] = words.map(Number);
  return frequencies.map((frequency) => {
    let stays = 0;
    if (kind === "llama3") {
      const turns = (original * frequency) / (2 * Math.PI);
      stays = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    }
    return fround(frequency * (stays + (1 - stays) / factor));
  });
}

// Rotate the pairs a, b = x[i], x[i + hs/2] of x (T,heads,hs), in place: a cos - b sin, b cos + a sin.
function rotate(x, heads, { cos, sin }, half) {
  for (let row = 0; row * 2 * half < x.length; row++) { // row: one head of one token
    const table = Math.floor(row / heads) * half;
    for (let i = 0; i < half; i++) {
      const place = row * 2 * half + i;
      const a = x[place], b = x[place + half], c = cos[table + i], s = sin[table + i];
      x[place] = a * c - b * s;
      x[place + half] = b * c + a * s;
    }
  }
}

// LayerNorm or RMSNorm of each `size` numbers of x -> an array like it. weight and bias may be missing.
function build_norm(config, size, weight, bias) {
  const centred = config.norm === "layernorm";
  return (x) => {
    const y = new Float64Array(x.length);
    for (let at = 0; at < x.length; at += size) {
      let mean = 0, squares = 0;
      if (centred) for (let i = 0; i < size; i++) mean += x[at + i] / size;
      for (let i = 0; i < size; i++) squares += (x[at + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / size + config.norm_eps);
      for (let i = 0; i < size; i++) {
        y[at + i] = (x[at + i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
      }
    }
    return y;
  };
}

// Replace the first half of the channels of x (T,C) by those of the previous token (RWKV: Peng, 2023).
function token_shift(x, T, C, past) {
  const half = Math.floor(C / 2), y = x.slice();
  for (let t = 0; t < T; t++) {
    y.set(t ? x.subarray((t - 1) * C, (t - 1) * C + half) : past.last, t * C);
  }
  past.last = x.slice((T - 1) * C, (T - 1) * C + half);
  return y;
}

class Attention {
  constructor(config, layer) {
    this.config = config;
    for (const name of ["q", "k", "v", "o"]) this[name] = layer.linear(name);
    if (config.qk_norm) { // without learned weights unless it is 2: then layer.norm finds none
      this.q_norm = layer.norm("q_norm", config.head_size);
      this.k_norm = layer.norm("k_norm", config.head_size);
    }
  }

  // x (T,C) -> (T,C). past: the layer's Cache. look: null, or its rows get each query's weights (H, keys).
  forward(x, T, rope, past, look) {
    const { n_head: H, n_kv_head: K, head_size: hs, window } = this.config;
    let q = this.q.forward(x, T), k = this.k.forward(x, T);
    const v = this.v.forward(x, T); // (T,K,hs)
    if (this.q_norm) [q, k] = [this.q_norm(q), this.k_norm(k)]; // before rope, which keeps lengths
    if (rope) {
      rotate(q, H, rope, hs / 2);
      rotate(k, K, rope, hs / 2);
    }
    const start = past.length;
    past.append(k, v, T);
    const y = new Float64Array(T * H * hs);
    for (let t = 0; t < T; t++) {
      const query = start + t, first = window ? Math.max(0, query - window + 1) : 0;
      const seen = Array.from({ length: H }, (_, h) => {
        const kv = Math.floor(h / (H / K)) * hs; // H / K query heads share a key/value head
        return attend(q, (t * H + h) * hs, past, kv, first, query, hs, y);
      });
      if (look && query >= look.from) look.rows.push(seen);
    }
    return this.o.forward(y, T);
  }
}

// softmax(q k' / sqrt(hs)) v of one query and head, added to y at its place -> the weights (query + 1)
function attend(q, at, past, kv, first, query, hs, y) {
  const { keys, values, size } = past, weights = new Float64Array(query + 1);
  let highest = -Infinity, sum = 0;
  for (let key = first; key <= query; key++) {
    let score = 0;
    for (let i = 0; i < hs; i++) score += q[at + i] * keys[key * size + kv + i];
    weights[key] = score / Math.sqrt(hs);
    highest = Math.max(highest, weights[key]);
  }
  for (let key = first; key <= query; key++) sum += weights[key] = Math.exp(weights[key] - highest);
  for (let key = first; key <= query; key++) {
    weights[key] /= sum;
    for (let i = 0; i < hs; i++) y[at + i] += weights[key] * values[key * size + kv + i];
  }
  return weights;
}

class MLP {
  constructor(config, layer) {
    this.activation = ACTIVATIONS[config.activation];
    this.up = layer.linear("up");
    this.gate = config.activation === "swiglu" ? layer.linear("gate") : null;
    this.down = layer.linear("down");
  }

  forward(x, T) {
    const h = this.up.forward(x, T), gate = this.gate && this.gate.forward(x, T);
    for (let i = 0; i < h.length; i++) h[i] = gate ? this.activation(gate[i]) * h[i] : this.activation(h[i]);
    return this.down.forward(h, T);
  }
}

const ACTIVATIONS = {
  relu2: (h) => (h > 0 ? h * h : 0),
  gelu: (h) => 0.5 * h * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (h + 0.044715 * h ** 3))),
  gelu_erf: (h) => 0.5 * h * (1 + erf(h / Math.SQRT2)),
  swiglu: (h) => h / (1 + Math.exp(-h)), // silu, of the gate
};

// The error function, to 1e-15: e^(-x^2) 2 / sqrt(pi) times the sum of 2^n x^(2n+1) / (1 3 5 ... (2n+1)).
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

class Block {
  constructor(config, layer) {
    this.attn_norm = layer.norm("attn_norm", config.n_embd);
    this.attn = new Attention(config, layer.inside("attn"));
    this.mlp_norm = layer.norm("mlp_norm", config.n_embd);
    this.mlp = new MLP(config, layer.inside("mlp"));
    this.token_shift = config.token_shift;
  }

  forward(x, T, rope, past, look) {
    let h = this.attn_norm(x);
    if (this.token_shift) h = token_shift(h, T, x.length / T, past);
    x = add(x, this.attn.forward(h, T, rope, past, look));
    return add(x, this.mlp.forward(this.mlp_norm(x), T));
  }
}

const add = (x, y) => x.map((value, i) => value + y[i]);

class GPT {
  constructor({ config, weights }) {
    this.config = config;
    const layers = (path) => ({ // the weights whose names begin with `path`
      linear: (name) => new Linear(weights[`${path}${name}.weight`], weights[`${path}${name}.bias`]),
      norm: (name, size) =>
        build_norm(config, size, weights[`${path}${name}.weight`], weights[`${path}${name}.bias`]),
      inside: (name) => layers(`${path}${name}.`),
    });
    this.wte = layers("").linear("wte");
    this.wpe = weights["wpe.weight"]; // (block_size,C) float32
    this.blocks = [];
    for (let i = 0; i < config.n_layer; i++) this.blocks.push(new Block(config, layers(`blocks.${i}.`)));
    this.norm = layers("").norm("norm", config.n_embd);
    this.head = config.tie_weights ? this.wte : layers("").linear("head");
    this.piece = 4 * Math.ceil(2 ** 23 / (12 * config.n_layer * config.n_embd ** 2)); // tokens in about 30 ms
  }

  caches() {
    return this.blocks.map(() => new Cache(this.config));
  }

  // Token ids (T) that the caches have not read -> normalised hidden states (T,C).
  // look: {from, attention, residual} is filled for the tokens from that position on, layer by layer.
  trunk(idx, caches, look = null) {
    const { config } = this, T = idx.length, C = config.n_embd, start = caches[0].length;
    const fit = start + T <= config.block_size;
    if (!fit) throw new Error(`${start + T} tokens do not fit into block_size=${config.block_size}`);
    const rope = config.position === "rope" ? rope_tables(start, T, config) : null;
    let x = new Float64Array(T * C);
    idx.forEach((id, t) => this.wte.add_row(id, x, t * C));
    if (config.position === "learned") for (let i = 0; i < T * C; i++) x[i] += this.wpe[start * C + i];
    const note = (layer) => {
      for (let t = Math.max(0, look.from - start); t < T; t++) {
        (look.residual[layer] ||= []).push(x.slice(t * C, t * C + C));
      }
    };
    if (look) note(0);
    this.blocks.forEach((block, i) => {
      x = block.forward(x, T, rope, caches[i], look && { from: look.from, rows: (look.attention[i] ||= []) });
      if (look) note(i + 1);
    });
    return this.norm(x);
  }

  // (T,C) -> (T,V)
  to_logits(x) {
    const logits = this.head.forward(x, x.length / this.config.n_embd), cap = this.config.logit_cap;
    return cap ? logits.map((logit) => cap * Math.tanh(logit / cap)) : logits;
  }

  // Token ids (T) -> logits (T,V) of each next token
  forward(idx) {
    return this.to_logits(this.trunk(idx, this.caches()));
  }

  // Read ids in pieces, yielding null between them; returns the last hidden states (T,C).
  *read(idx, caches) {
    for (let at = 0; ; at += this.piece) {
      const x = this.trunk(idx.slice(at, at + this.piece), caches);
      if (at + this.piece >= idx.length) return x;
      yield null;
    }
  }
}

// The KV cache of one layer, filled from the left, and what token_shift keeps of the last token
class Cache {
  constructor({ n_kv_head, head_size, n_embd, block_size }) {
    this.length = 0; // tokens
    this.size = n_kv_head * head_size; // numbers a token
    this.keys = new Float64Array(block_size * this.size);
    this.values = new Float64Array(block_size * this.size);
    this.last = new Float64Array(Math.floor(n_embd / 2)); // zeros before the first token
  }

  append(k, v, T) {
    this.keys.set(k, this.length * this.size);
    this.values.set(v, this.length * this.size);
    this.length += T;
  }
}

// Logits (V) -> probabilities (V) to draw with, up to a factor: what is left out counts in their sum.
function token_probs(logits, temperature, top_k = 0, top_p = 1) {
  const probs = new Float64Array(logits.length), highest = logits.reduce((a, b) => Math.max(a, b));
  if (temperature === 0 || top_k === 1) {
    probs[logits.indexOf(highest)] = 1;
    return probs;
  }
  let kept = Array.from(logits.keys()), sum = 0, likelier = 0;
  if (top_k || top_p < 1) kept.sort((a, b) => logits[b] - logits[a]); // the likeliest first
  if (top_k) kept = kept.slice(0, top_k);
  for (const id of kept) sum += probs[id] = Math.exp((logits[id] - highest) / temperature);
  for (const id of kept) {
    probs[id] = likelier < top_p ? probs[id] / sum : 0; // the one that crosses top_p is kept
    likelier += top_p < 1 ? probs[id] : 0;
  }
  return probs;
}

// mulberry32 (Tommy Ettinger, 2017): a counter whose bits are mixed. 2^32 numbers from 0 to 1, then again.
// They are not torch's: a seed gives the same text in each browser, and another one in sample.py.
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Probabilities (V), up to a factor, and a number from 0 to 1 -> an id
function draw(probs, drawn) {
  const target = drawn * probs.reduce((a, b) => a + b, 0);
  let sum = 0;
  return probs.findIndex((prob) => (sum += prob) > target);
}

// Yield new ids one by one until a stop token; null now and then, so that the page can answer in between.
// model.logits holds those that an id was drawn from. When the context is full, the last `keep` tokens are
// read again: block_size, as in generate.py, for each new token; half of it only every block_size / 2 tokens.
function* stream(model, prompt, max_new_tokens, options = {}) {
  const { block_size, vocab_size } = model.config;
  const { temperature = 1, top_k = 0, top_p = 1, stop_tokens = [], seed = 1337, keep = block_size } = options;
  const legal = temperature >= 0 && top_k >= 0 && top_p > 0 && top_p <= 1;
  if (!legal) throw new Error("temperature or top_k is below 0, or top_p not above 0 and at most 1");
  const known = prompt.length && prompt.every((id) => id >= 0 && id < vocab_size);
  if (!known) throw new Error(`expected one token id or more, each below ${vocab_size}`);
  const random = generator(seed);
  let ids = Array.from(prompt), unread = ids, caches = model.caches();
  for (let n = 0; n < max_new_tokens; n++) {
    if (caches[0].length + unread.length > block_size) {
      unread = ids = ids.slice(-keep);
      caches = model.caches();
    }
    const x = yield* model.read(unread, caches);
    model.logits = model.to_logits(x.slice(-model.config.n_embd));
    const id = draw(token_probs(model.logits, temperature, top_k, top_p), random());
    if (stop_tokens.includes(id)) return;
    ids.push(id);
    unread = [id];
    yield id;
  }
}

Object.assign(globalThis, { GPT, Cache, erf, token_probs, generator, draw, stream });
if (typeof module !== "undefined") module.exports = globalThis; // Node
