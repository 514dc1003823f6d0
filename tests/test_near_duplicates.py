"""Near-duplicates: MinHash and bands against the Jaccard similarity of all pairs, and what data.py drops."""

import itertools
import random
import time
import zipfile

import numpy as np
import pytest

from test_data import decode, error_of, own_datasets, samples, write, write_rows
from test_token_files import contents, project, torchrun
from text import near_duplicates as nd
from text import prepare

assert own_datasets  # a fixture

PARTS = "ba be co da di fo gu ha ji ke lo mu na or pe qui ro su ta um ve wo xa yo zu".split()
WORDS = ["".join(parts) for n in (1, 2, 3) for parts in itertools.product(PARTS, repeat=n)]


def sentences(n, seed, fewest=15, most=60):
    """n texts of random words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(fewest, most))) for _ in range(n)]


def edited(text, share, rng):
    """The text with a share of its words exchanged."""
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())


def grams(text):
    text = " ".join(text.lower().split()).ljust(5, "\0")
    return {text[i : i + 5] for i in range(len(text) - 4)}


def jaccard(a, b):
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def twin(texts, threshold):
    """near_duplicates, by the exact similarity of all pairs."""
    sets, first = [grams(text) for text in texts], []
    for i, its in enumerate(sets):
        like = (j for j in range(i) if first[j] < 0 and len(its & sets[j]) >= threshold * len(its | sets[j]))
        first.append(next(like, -1))
    return np.array(first)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_near_duplicates_are_those_of_exact_jaccard(figure, threshold):
    """Away from the threshold by 3 standard errors, each text goes or stays as among all pairs; the shares of
    right decisions near it are told."""
    rng = random.Random(1)
    texts = sentences(80, 0)
    texts += [edited(text, rng.uniform(0, 0.7 * (1 - threshold)), rng) for text in texts]
    found, exact = nd.near_duplicates(texts, threshold) >= 0, twin(texts, threshold) >= 0
    error = 3 * (threshold * (1 - threshold) / nd.HASHES) ** 0.5
    similarity = [jaccard(texts[i], texts[i + 80]) for i in range(80)]
    for i, s in enumerate(similarity):
        if abs(s - threshold) > error:
            assert found[i + 80] == (s >= threshold), (s, threshold)
    assert not found[:80].any() and 20 < exact.sum() < 77
    both = (found & exact).sum()
    recall, precision = both / exact.sum(), both / found.sum()
    assert recall > 0.85 and precision > 0.85
    figure(f"near-duplicates at {threshold}: recall {recall:.0%}, precision {precision:.0%} of exact Jaccard")


def test_a_signature_estimates_the_similarity():
    """128 hashes: a standard error of sqrt(s (1 - s) / 128), without bias (here: mean of 60 pairs)."""
    rng = random.Random(2)
    texts = sentences(60, 3)
    pairs = texts + [edited(text, 0.05, rng) for text in texts]
    signatures = nd.minhash([nd.normal(text) for text in pairs])
    z = []
    for i in range(60):
        s = jaccard(pairs[i], pairs[i + 60])
        (estimate,) = nd.similarities(signatures, i, np.array([i + 60]))
        z.append((estimate - s) / max(1e-4, s * (1 - s) / 128) ** 0.5)
    assert abs(np.mean(z)) < 0.4 and 0.6 < np.std(z) < 1.3


def test_hashes_by_hand():
    """The rolling hash and a signature, with Python's whole numbers; texts of one batch do not mix."""
    texts = ["a\0\0\0\0", "to be or not to be", "é你😀 fünf", "abcde"]

    def mixed(x):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> shift)) * factor % 2**64
        return x ^ (x >> 31)

    def hashed(gram):
        value = 0
        for character in gram:
            value = (value * 0x100000001B3 + ord(character)) % 2**64
        return mixed(value) >> 32

    assert nd.ngram_hashes(texts[1]).tolist() == [hashed(texts[1][i : i + 5]) for i in range(14)]
    factors = [mixed(i) >> 32 | 1 for i in range(1, 129)]
    terms = [mixed(i) >> 32 for i in range(129, 257)]
    for text, signature in zip(texts, nd.minhash(texts), strict=True):
        hashes = [hashed(text[i : i + 5]) for i in range(len(text) - 4)]
        expected = [min((f * h + t) % 2**32 for h in hashes) for f, t in zip(factors, terms, strict=True)]
        assert signature.tolist() == expected


def test_bands_by_hand():
    """At 0.8: 21 bands of 6 miss 0.2 % of the pairs, 18 of 7 miss 1.5 %, which is more than 1 %."""
    assert nd.rows_per_band(0.8) == 6 and nd.rows_per_band(0.5) == 3 and nd.rows_per_band(1.0) == 128
    assert (1 - 0.8**6) ** 21 < 0.01 < (1 - 0.8**7) ** 18
    assert nd.rows_per_band(0.01) == 1


def test_the_first_one_stays_and_only_kept_ones_count():
    """b is like a, and goes; c is like b, not like a, and stays. Case and white space do not count."""
    rng = random.Random(0)
    words = sentences(1, 5, 60, 60)[0].split()
    a = " ".join(words)
    b = " ".join([*words[:54], *rng.choices(WORDS, k=6)])
    c = " ".join([*rng.choices(WORDS, k=6), *b.split()[6:]])
    assert jaccard(a, b) > 0.8 and jaccard(b, c) > 0.8 and jaccard(a, c) < 0.7, "as the docstring says"
    texts = [a, "", "", b, c, a.upper().replace(" ", " \n "), "x", "X ", "y"]
    expected = twin(texts, 0.73).tolist()
    assert nd.near_duplicates(texts, 0.73).tolist() == expected == [-1, -1, 1, 0, -1, 0, -1, 6, -1]
    assert nd.near_duplicates([], 0.5).tolist() == []
    for wrong in (-0.5, 1.5, float("nan")):
        assert "makes no sense; expected 0 (off) to 1" in error_of(nd.near_duplicates, texts, wrong)


def planted(n=30, seed=6):
    """(texts, those that stay): every third is followed later on by itself with one word exchanged."""
    texts = sentences(n, seed, 30, 60)
    near = []
    for text in texts[::3]:
        words = text.split()
        near.append(" ".join([*words[:10], "elsewhere", *words[11:]]))
    return texts[: n // 2] + near[: n // 6] + texts[n // 2 :] + near[n // 6 :], texts


def test_each_format_loses_its_near_duplicates(tmp_path):
    """Paragraphs; lines of a text without blank lines; samples of lines; rows; --dedup finds none of them."""
    texts, stay = planted()
    cases = {
        "paragraphs": ("\n\n".join(text.replace(" ", "\n", 1) for text in texts), "text"),
        "crlf": ("\r\n\r\n".join(texts), "text"),
        "text": ("\n".join(texts), "text"),
        "lines": ("\n".join(texts) + "\n", "lines"),
    }
    for name, (text, format) in cases.items():
        source = write(tmp_path / f"{name}.txt", text)
        how = dict(format=format, val_ratio=0, near_dedup=0.8)
        meta = prepare.prepare(name, source, **how)
        assert meta["dropped"] == {"near-duplicates": 10}, name
        expected = text
        for gone in texts:
            if gone not in stay:
                shown = gone.replace(" ", "\n", 1) if name == "paragraphs" else gone
                expected = expected.replace(shown, "")
        between = "\r\n\r\n" if name == "crlf" else "\n\n" if name == "paragraphs" else "\n"
        expected = between.join(part for part in expected.split(between) if part)
        found = "\n".join(samples(name)) if format == "lines" else decode(name)
        assert found.strip() == expected.strip()
        exact = prepare.prepare("exact", source, format=format, dedup=True)["dropped"]
        assert exact == ({"repeats": 10} if name == "paragraphs" else {})  # the lines of one word
    rows = [{"prompt": text[:50], "response": text[50:]} for text in texts]
    meta = prepare.prepare("rows", write_rows(tmp_path / "r.jsonl", rows), near_dedup=0.8, val_ratio=0)
    assert meta["dropped"] == {"near-duplicates": 10} and samples("rows") == stay


def test_documents_of_a_folder_or_zip_file(tmp_path, capsys):
    """A copy of a file goes as a whole, with its end; one that has lost its beginning begins with text."""
    one, two, three = ("\n\n".join(sentences(4, seed, 30, 40)) for seed in (7, 8, 9))
    texts = [one + "\n", one.replace("um", "ums", 2) + "\n\n", two, one[: one.index("\n")] + "\n\n" + three]
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for i, text in enumerate(texts):
            write(tmp_path / "in" / f"{i}.txt", text)
            file.writestr(f"{i}.txt", text)
    for source in ("in", "in.zip"):
        meta = prepare.prepare("mine", str(tmp_path / source), near_dedup=0.7, val_ratio=0)
        assert samples("mine") == [one + "\n", two, three] and meta["dropped"] == {"near-duplicates": 5}
        assert meta["splits"]["train"]["documents"] == 3
    assert "in: --near_dedup=0.7 dropped 5 of 17 paragraphs with" in capsys.readouterr().out


def test_together_with_cleaning_exact_repeats_and_bad_rows(tmp_path):
    """Each drops its own: counted once, and the same with shards, byte for byte."""
    texts, stay = planted()
    rows = "".join(f'{{"text": "{text}  ."}}\n' for text in [texts[0], *texts]) + "{oops\n"
    source = write(tmp_path / "r.jsonl", rows)
    how = dict(clean=True, dedup=True, skip_bad=True, near_dedup=0.8, val_ratio=0)
    meta = prepare.prepare("one", source, format="jsonl", **how)
    expected = {"runs of blanks": 41, "repeats": 1, "bad rows": 1, "near-duplicates": 10}
    assert meta["dropped"] == expected and samples("one") == [f"{text} ." for text in stay]
    prepare.prepare("many", source, format="jsonl", **how, shard_mb=0.001)
    whole, shards = contents(prepare.DATASETS / "one"), contents(prepare.DATASETS / "many")
    files = sorted(name for name in shards if name.startswith("train_0"))
    assert whole["train.bin"] == b"".join(shards[name] for name in files)


@pytest.mark.slow
def test_several_processes_drop_the_same(tmp_path):
    texts, _ = planted(60)
    source = write(tmp_path / "a.txt", "\n\n".join(texts))
    how = dict(near_dedup=0.8, quality="gopher", first=15_000, shard_mb=0.002)
    prepare.prepare("mine", source, **how)
    folder = project(tmp_path)
    flags = [f"--{key}={value}" for key, value in how.items()]
    done = torchrun(folder, 2, f"--input={source}", "--name=mine", *flags)
    assert done.returncode == 0, done.stderr
    assert contents(folder / "datasets/mine") == contents(prepare.DATASETS / "mine")


@pytest.mark.slow
@pytest.mark.alone
def test_ten_megabytes_in_reasonable_time(figure):
    """Time grows with the text, not with the number of pairs."""
    texts = sentences(30_000, 10, 30, 60)
    began = time.process_time()
    assert (nd.near_duplicates(texts, 0.8) < 0).all()
    seconds = (time.process_time() - began) * 1e7 / sum(map(len, texts))
    figure(f"near-duplicates: {seconds:.1f} s of one core for 10 MB")
    assert seconds < 30
