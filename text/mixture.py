"""The setting --dataset=a:0.7,b:0.3: several datasets with their shares, as one (techniques/mixture.py)."""

import contextlib
import hashlib
import re
from pathlib import Path

from config import require
from runtime.trust import check_types, read_meta
from text.dataset import require_same_content
from text.prepare import KNOWN, folder_of, is_prepared
from text.token_files import COUNTS

UNIT = 1000  # shares are whole thousandths: so many windows have them exactly


def is_mixture(dataset: str | Path) -> bool:
    """Whether the setting names several datasets with their shares: a:0.7,b:0.3."""
    if not re.search(r",|:[\d.]+$", str(dataset)):
        return False
    with contextlib.suppress(OSError):  # too long for the name of a file, so it is none
        return not Path(dataset).exists() and not is_prepared(dataset)
    return True


def parts_of(dataset: str) -> dict[str, int]:
    """'a:0.7,b:0.3' -> {'a': 700, 'b': 300}. ValueError for shares that are missing, or do not add up."""
    shares = {}
    for part in dataset.split(","):
        name, _, share = map(str.strip, part.rpartition(":"))
        good = name and re.fullmatch(r"\d*\.?\d+", share)
        require(good, f"{part!r} in dataset={dataset} has no share; expected NAME:SHARE, as in a:0.7,b:0.3")
        thousandths = round(UNIT * float(share))
        exact = thousandths > 0 and abs(UNIT * float(share) - thousandths) < 1e-6
        require(exact, f"{name} has the share {share}; expected 0.001 to 1, in thousandths")
        require(name not in shares, f"dataset={dataset} names {name} twice; add its shares up")
        shares[name] = thousandths
    total = sum(shares.values()) / UNIT
    require(total == 1, f"the shares of dataset={dataset} add up to {total:g}; expected 1")
    return shares


def joined(dataset: str) -> dict:
    """What meta.json says, for a mixture: sums over its datasets, and under "mixture" the meta of each.

    ValueError for another tokenizer than the first one's, with the command that makes it the same.
    """
    shares = parts_of(dataset)
    metas = {name: read_meta(folder_of(name)) for name in shares}
    base, first = next(iter(metas.items()))
    for name, meta in metas.items():
        require(meta["tokenizer_hash"] == first["tokenizer_hash"], how_to_share(name, meta, base, first))
    formats = [meta["format"] for meta in metas.values()]
    stand_ins = [{key: meta[key] for key in meta if key.startswith("stand_in")} for meta in metas.values()]
    splits = {}
    for split in first["splits"]:
        counts = [meta["splits"].get(split) for meta in metas.values()]
        if all(counts):
            splits[split] = {what: sum(each[what] for each in counts) for what in COUNTS}
            splits[split]["sha256"] = sha256_of(each["sha256"] for each in counts)
    return {
        **max(stand_ins, key=len),
        **{key: first[key] for key in ("tokenizer", "tokenizer_hash", "vocab_size", "dtype", "end_id")},
        "name": dataset,
        "source": ", ".join(meta["source"] for meta in metas.values()),
        "sha256": sha256_of(meta["sha256"] for meta in metas.values()),
        "format": "jsonl" if "jsonl" in formats else formats[0],
        "masked": any(meta["masked"] for meta in metas.values()),
        "turns": any(meta.get("turns", False) for meta in metas.values()),
        "dropped": {},
        "splits": splits,
        "mixture": {name: {**meta, "share": shares[name]} for name, meta in metas.items()},
    }


def how_to_share(name: str, meta: dict, base: str, first: dict) -> str:
    """The message for a dataset `name` that has another tokenizer than the mixture's first one, `base`."""
    source, of_base = (KNOWN.get(key, its)["source"] for key, its in ((name, meta), (base, first)))
    how = "python data.py" if meta["format"] == "text" else f"python data.py --format={meta['format']}"
    line = (
        f"{name} has another tokenizer than {base}; prepare it with the same, by data.py: "
        f"{how} --input={source} --name={Path(name).name}-as-{Path(base).name} --tokenizer={base}"
    )
    if first["tokenizer"] == "char":
        line += (
            f"; if that lacks characters, make one of both, python data.py --input={of_base} "
            f"--val_input={source} --name=both, and prepare each with --tokenizer=both"
        )
    return line


def sha256_of(hashes) -> str:
    """One sha256 for several."""
    return hashlib.sha256("".join(hashes).encode("utf-8")).hexdigest()


def require_same_mixture(trained: dict, meta: dict, where: str, advice: str) -> None:
    """ValueError if a mixture is not the one that a run was trained on. trained: the checkpoint's "dataset".

    The shares have to be the same, and the content of each dataset; names and paths do not count.
    """
    check_types(trained, {"name": str}, f"{where}: dataset", required=False)
    then, now = trained.get("mixture", {}), meta.get("mixture", {})
    for each in then.values():
        check_types(each, {"share": int}, f"{where}: a dataset of the mixture")
    same = [each["share"] for each in then.values()] == [each["share"] for each in now.values()]
    was = trained.get("name", "another dataset")
    require(
        same, f"{where} was trained on {was:.200}, not on {meta['name']}; leave --dataset out, or {advice}"
    )
    for each, (name, its) in zip(then.values(), now.items(), strict=True):
        require_same_content(each, its, folder_of(name), where, advice)
