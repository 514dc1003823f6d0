"""New tokenizers for a text: its characters, byte pairs learned from it, or GPT-2's vocabulary."""

from tokenizer import END, BPETokenizer, CharTokenizer, Tokenizer, open_tiktoken


def make_tokenizer(kind: str, vocab_size: int, end: bool, parts, alphabet: set[str] | None) -> Tokenizer:
    """Make the tokenizer of a kind: char, bpe or gpt2. parts: those of a Source.

    alphabet: the characters of all splits, for char. This is no leak: an alphabet is no statistic, and val
    could not be encoded without it. Byte pairs learn only from the training split of parts.
    """
    special = [END] if end or kind == "bpe" else []  # bpe: fine-tuning may add samples, which need it
    if kind == "char":
        return CharTokenizer.train(sorted(alphabet), special)
    if kind == "bpe":
        texts = (text for split, segments, _ in parts if split == "train" for text, _ in segments)
        return BPETokenizer.train(texts, vocab_size or 1024, special)
    return gpt2()


def gpt2() -> BPETokenizer:
    """GPT-2's 50,257 tokens, from tiktoken's cache or the network. "Hello world" becomes 15496, 995."""
    remedy = "connect, or set TIKTOKEN_CACHE_DIR to a folder that holds it, or use data.py --tokenizer=bpe"
    tiktoken, _ = open_tiktoken()
    try:
        theirs = tiktoken.get_encoding("gpt2")
    except Exception as error:  # of many types: no network, a broken download, a full disk
        raise ValueError(f"GPT-2's vocabulary is not cached ({type(error).__name__}): {remedy}") from None
    return BPETokenizer([theirs.decode_single_token_bytes(i) for i in range(theirs.eot_token)], [END])
