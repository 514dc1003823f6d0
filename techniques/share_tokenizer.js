// What share.py writes, read in plain JavaScript: tokenizer.py's CharTokenizer and BPETokenizer, and weights.
//
// Names of special tokens are plain text here: what a visitor types cannot be one. The pattern comes as
// JavaScript's, made by share.py's javascript_pattern(). A token's bytes are kept as a string of characters
// below 256, which a Map can look up.
"use strict";

class Tokenizer {
  // json: what Tokenizer.to_json() writes, with begin_id, end_id and stop_ids
  constructor(json) {
    const { ids, special_tokens } = place_ids(json.tokens.length, json.special_tokens);
    Object.assign(this, { ids, special_tokens, stop_ids: json.stop_ids });
    Object.assign(this, { begin_id: json.begin_id, end_id: json.end_id });
    this.tokens = json.tokens.map(token_of); // the ordinary ones, by rising id
    this.vocab_size = ids.length + Object.keys(special_tokens).length;
    this._bytes = [];
    ids.forEach((id, i) => (this._bytes[id] = this.tokens[i]));
    for (const [name, id] of Object.entries(special_tokens)) this._bytes[id] = utf8(name);
    this._special = new Set(Object.values(special_tokens));
  }

  // How many bytes of text a token stands for: 0 for special tokens
  token_bytes(id) {
    return this._special.has(id) ? 0 : this._bytes[id].length;
  }

  // Bytes that are not UTF-8 become U+FFFD, the replacement character.
  decode(ids) {
    const bytes = Array.from(ids, (id) => this._bytes[id]).join("");
    return new TextDecoder("utf-8", { ignoreBOM: true }) // true: U+FEFF stays
      .decode(Uint8Array.from(bytes, (c) => c.charCodeAt(0)));
  }

  // A token that is a part of a character, as people write bytes: \xe4
  escaped(id) {
    const byte = (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`;
    return this._bytes[id].replace(/[^\x20-\x7e]/g, byte);
  }
}

// Special tokens have the last ids, or those of {name: id}; ordinary ones fill the others.
function place_ids(n, special_tokens) {
  if (Array.isArray(special_tokens)) {
    special_tokens = Object.fromEntries(special_tokens.map((name, i) => [name, n + i]));
  }
  const taken = new Set(Object.values(special_tokens)), ids = [];
  for (let id = 0; ids.length < n; id++) if (!taken.has(id)) ids.push(id);
  return { ids, special_tokens };
}

// Text -> its UTF-8 bytes as a string of characters below 256
function utf8(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

// A token as the JSON writes it -> its bytes: \xe4 is a byte that is not UTF-8 alone, \\ a backslash.
function token_of(text) {
  const parts = text.split(/(\\\\|\\x[0-9a-f]{2})/);
  const plain = (part) => (part === "\\\\" ? "\\" : String.fromCharCode(parseInt(part.slice(2), 16)));
  return parts.map((part, i) => (i % 2 ? plain(part) : utf8(part))).join("");
}

class CharTokenizer extends Tokenizer {
  constructor(json) {
    super(json);
    this._ids = new Map(this.ids.map((id) => [this.decode([id]), id]));
  }

  // Error that lists unknown characters; unknown = "skip" leaves them out.
  encode(text, unknown = "error") {
    const symbols = Array.from(text), known = (symbol) => this._ids.has(symbol);
    const missing = [...new Set(symbols.filter((symbol) => !known(symbol)))];
    if (unknown !== "skip" && missing.length) {
      throw new Error(`unknown characters: ${missing.slice(0, 20).map((c) => JSON.stringify(c)).join(", ")}`);
    }
    return symbols.filter(known).map((symbol) => this._ids.get(symbol));
  }
}

class BPETokenizer extends Tokenizer {
  constructor(json) {
    super(json);
    this.pattern = new RegExp(json.pattern, "gu");
    this._rank = new Map(this.tokens.map((token, i) => [token, this.ids[i]])); // ids rise from merge to merge
    this._words = new Map(); // words that were cut already
  }

  // Error for half of a surrogate pair, which has no bytes.
  encode(text) {
    if (/\p{Surrogate}/u.test(text)) throw new Error("the text holds half of a surrogate pair");
    const ids = [];
    for (const word of text.match(this.pattern) || []) {
      if (!this._words.has(word)) this._words.set(word, this.encode_word(utf8(word)));
      for (const id of this._words.get(word)) ids.push(id);
    }
    if (this._words.size > 10000) this._words.clear();
    return ids;
  }

  // Join the two neighbours whose joined bytes are the oldest token, leftmost first, until none are a token.
  encode_word(bytes) {
    const parts = Array.from(bytes), rank = (i) => this._rank.get(parts[i] + parts[i + 1]) ?? Infinity;
    const ranks = parts.slice(1).map((_, i) => rank(i)); // of each pair of neighbours; a merge changes two
    for (;;) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (!(ranks[best] < Infinity)) return parts.map((part) => this._rank.get(part));
      parts.splice(best, 2, parts[best] + parts[best + 1]);
      ranks.splice(best, 1);
      if (best < ranks.length) ranks[best] = rank(best);
      if (best > 0) ranks[best - 1] = rank(best - 1);
    }
  }
}

function tokenizer_of(json) {
  return json.type === "char" ? new CharTokenizer(json) : new BPETokenizer(json);
}

// The file that share.py writes -> {config, weights} for GPT. Weights are views, in the order of the lists.
function unpack({ config, matrices, vectors, codes, floats }) {
  const bytes = new Int8Array(bytes_of(codes).buffer), numbers = new Float32Array(bytes_of(floats).buffer);
  const weights = {};
  let byte = 0, number = 0;
  for (const [name, n_out, n_in] of matrices) {
    const scales = numbers.subarray(number, (number += n_out));
    weights[name] = { n_out, n_in, codes: bytes.subarray(byte, (byte += n_out * n_in)), scales };
  }
  for (const [name, size] of vectors) {
    weights[name] = numbers.subarray(number, (number += size));
  }
  return { config, weights };
}

function bytes_of(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

Object.assign(globalThis, { CharTokenizer, BPETokenizer, tokenizer_of, unpack });
if (typeof module !== "undefined") module.exports = globalThis; // Node
