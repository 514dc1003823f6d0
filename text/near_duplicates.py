"""Near-duplicates: texts whose sets of n-grams overlap, found without comparing all pairs.

Two texts are as similar as their sets of character 5-grams, by Jaccard: |A and B| / |A or B|. Case and the
amount of white space do not count.

    MinHash    a signature of 128 numbers per text; two agree at a place with the probability of the Jaccard
               similarity (Broder, 1997). So agreements estimate it, with a standard error of 0.035 at 0.8
    LSH        the signatures are cut into bands; only texts that agree in a whole band are compared (Indyk
               and Motwani, 1998; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3)

The time grows with the length of the text, the memory with the number of texts: 512 bytes for each signature,
and as much again while they are joined.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

N = 5  # characters per n-gram: words of one text, also where no blanks stand between them
HASHES = 128  # numbers per signature; the standard error of a similarity s is sqrt(s (1 - s) / HASHES)
RECALL = 0.99  # bands are so short that a pair at the threshold is compared with at least this probability
BATCH = 2**17  # characters per batch: the n-grams' hashes stay in the processor's cache


def near_duplicates(texts: Iterable[str], threshold: float) -> np.ndarray:
    """For each text: the number of the first kept one that is at least that similar; -1: it is kept. (n,)

    Texts are compared with earlier ones that are kept, so each that goes leaves one behind that is like it.
    ValueError for a threshold that makes no sense.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"near_dedup={threshold} makes no sense; expected 0 (off) to 1; 0.8 is usual")
    signatures = np.concatenate([np.zeros((0, HASHES), np.uint32), *map(minhash, batches(texts))])
    first = np.full(len(signatures), -1)
    kept = defaultdict(list)  # band and its content -> the kept texts with it
    for number, buckets in shared_buckets(signatures, rows_per_band(threshold)):
        earlier = np.array(sorted({other for bucket in buckets for other in kept[bucket]}), dtype=np.int64)
        similar = earlier[similarities(signatures, number, earlier) >= threshold]
        if len(similar):
            first[number] = similar[0]
            continue
        for bucket in buckets:
            kept[bucket].append(number)
    return first


def normal(text: str) -> str:
    """The text as it is compared: in lower case, one blank for any white space, N characters or more."""
    return " ".join(text.lower().split()).ljust(N, "\0")


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts, as they are compared, to batches of about BATCH characters."""
    batch, length = [], 0
    for text in map(normal, texts):
        batch.append(text)
        length += len(text)
        if length > BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def minhash(texts: list[str]) -> np.ndarray:
    """The signatures of texts, (n, HASHES) uint32: the least value of each hash function on their n-grams."""
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    hashes = ngram_hashes("".join(texts))
    inside = np.ones(len(hashes), dtype=bool)  # n-grams that reach into the next text do not count
    inside[(ends[:-1, None] - np.arange(1, N)).ravel()] = False
    hashes = hashes[inside]
    starts = np.cumsum(lengths - N + 1) - (lengths - N + 1)
    signatures = np.empty((len(texts), HASHES), dtype=np.uint32)
    values = np.empty_like(hashes)
    for i, (factor, term) in enumerate(zip(*FUNCTIONS, strict=True)):
        np.multiply(hashes, factor, out=values)
        np.add(values, term, out=values)
        signatures[:, i] = np.minimum.reduceat(values, starts)
    return signatures


def ngram_hashes(text: str) -> np.ndarray:
    """A hash of each n-gram, (len(text) - N + 1,) uint32: a polynomial of its code points, mixed."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    n = len(points) - N + 1
    hashes = np.zeros(n, dtype=np.uint64)
    for i in range(N):
        hashes = hashes * np.uint64(0x100000001B3) + points[i : i + n]
    return (mixed(hashes) >> np.uint64(32)).astype(np.uint32)


def mixed(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 numbers, one to one (the last step of SplitMix64: Steele and others, 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


# The hash functions: x -> factor x + term, modulo 2**32, the factor odd. The same on each machine.
FUNCTIONS = (mixed(np.arange(1, 2 * HASHES + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
FUNCTIONS = FUNCTIONS.reshape(2, HASHES) | np.array([[1], [0]], dtype=np.uint32)


def rows_per_band(threshold: float) -> int:
    """The longest bands that RECALL allows: a pair at the threshold agrees in one of them, or is missed.

    r rows agree with probability s^r, and b = HASHES // r bands all differ with (1 - s^r)^b.
    """
    fit = [r for r in range(1, HASHES + 1) if 1 - (1 - threshold**r) ** (HASHES // r) >= RECALL]
    return max(fit, default=1)


def shared_buckets(signatures: np.ndarray, rows: int) -> Iterator[tuple[int, list[int]]]:
    """(number, buckets) of each text that agrees with another one in a band, in order.

    A bucket is a band and what stands in it, as one number. Most texts are alone in all of theirs.
    """
    numbers, buckets = [], []
    for band in range(HASHES // rows):
        content = np.zeros(len(signatures), dtype=np.uint64)
        for column in signatures[:, band * rows : (band + 1) * rows].T:
            content = mixed(content + column)
        _, bucket, count = np.unique(content, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(count[bucket] > 1)
        numbers.append(shared)
        buckets.append(bucket[shared] * HASHES + band)
    numbers, buckets = np.concatenate(numbers), np.concatenate(buckets)
    order = np.argsort(numbers, kind="stable")
    texts, starts = np.unique(numbers[order], return_index=True)
    for number, its in zip(texts.tolist(), np.split(buckets[order], starts[1:]), strict=False):
        yield number, its.tolist()


def similarities(signatures: np.ndarray, number: int, others: np.ndarray) -> np.ndarray:
    """The estimated Jaccard similarity of a text with others, (len(others),)."""
    return np.count_nonzero(signatures[others] == signatures[number], axis=1) / HASHES
