"""Downloads a model from huggingface.co, or any one file: resumed, checked, complete or not there.

    python -m techniques.pretrained download HuggingFaceTB/SmolLM2-135M-Instruct --to=smollm2
    python -m techniques.pretrained download https://huggingface.co/OWNER/NAME/resolve/main/FILE.gguf --to=F

A file grows as NAME.part and gets its name when its size and its sha256 are right. Hugging Face tells both
before (huggingface.co/docs/hub/api). Only HTTPS is spoken, no login is sent, and nothing that arrives is run.
"""

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from config import require
from runtime.guard import alone

HUB = "https://huggingface.co"
WANTED = re.compile(  # not consolidated.safetensors, which is the same weights again
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|tokenizer\.model|chat_template\.jinja|LICENSE[\w.]*"
    r"|model(-[0-9]+-of-[0-9]+)?\.safetensors(\.index\.json)?"
)
BLOCK = 2**20  # bytes per read
TIMEOUT = 30  # seconds without an answer
LATER = "repeat the command when the network is back (it goes on where it stopped), or copy the files here"


class Broken(Exception):
    """The connection failed, or ended before the file did. The message is the reason."""


def download(name: str, folder: Path | str) -> Path:
    """Download a repository of Hugging Face's (OWNER/NAME, or its page) or the file of a URL into a folder.

    Returns the folder, or the file. What is there and right is not fetched again. ValueError, of one line,
    without a network, for a name that does not exist, or for a file that is not what its list says.
    """
    folder = Path(folder).expanduser()
    page, _, file = name.removeprefix(f"{HUB}/").replace("/blob/", "/resolve/").partition("/resolve/")
    file = unquote(file.partition("/")[2].partition("?")[0])  # after the branch
    if "://" in page:  # somewhere else
        last = unquote(Path(urlsplit(name).path).name)
        require(re.fullmatch(r"\w[\w.-]*", last), f"{name} ends in no file name; give the URL of a file")
        plan = [(name, folder / last, 0, "")]
    else:
        known = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", page)
        require(known, f"{name} is no model of Hugging Face's; expected OWNER/NAME, or https://...")
        commit, files = listing(page)
        wanted = [each for each in files if (each == file if file else WANTED.fullmatch(each))]
        weights = [each for each in wanted if file or each.endswith(".safetensors")]
        others = ", ".join(each for each in files if each.endswith((".gguf", ".safetensors", ".bin")))
        advice = f"it has {others[:200] or 'no weights'}; for one file: {HUB}/{page}/resolve/main/FILE"
        require(weights, f"{page} has no {file or 'model.safetensors'}; {advice}")
        wanted.sort(key=lambda each: each in weights)  # the small ones first
        start = f"{HUB}/{page}/resolve/{commit}"
        plan = [(f"{start}/{quote(each)}", folder / Path(each).name, *files[each]) for each in wanted]
    with alone(folder / "download.lock", "wait for it, or name another folder"):
        for url, path, size, sha256 in plan:
            fetch(url, path, size, sha256)
    return path if len(plan) == 1 else folder


def listing(page: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """(commit, {file: (size, sha256)}) of a repository; a small file has no sha256, but "".

    ValueError if there is no such repository, or no answer.
    """
    url = f"{HUB}/api/models/{page}?blobs=true"
    try:
        with opened(url) as reply, network(url):
            content = reply.read(2**24)
    except Broken as error:
        raise ValueError(f"{page} could not be downloaded: {error}; {LATER}") from None
    try:
        answer = json.loads(content)
        sizes = {each["rfilename"]: each.get("size") or 0 for each in answer["siblings"]}
        sums = {each["rfilename"]: (each.get("lfs") or {}).get("sha256", "") for each in answer["siblings"]}
        good = all(type(size) is int and size >= 0 for size in sizes.values())
        good = good and all(re.fullmatch(r"([0-9a-f]{64})?", sha256) for sha256 in sums.values())
        commit = answer["sha"] if good and re.fullmatch(r"[0-9a-f]+", answer["sha"]) else ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        commit = ""
    require(commit != "", f"{url} answered with no list of files; try again later")
    return commit, {file: (sizes[file], sums[file]) for file in sizes}


def fetch(url: str, path: Path, size: int = 0, sha256: str = "") -> Path:
    """Download one file to `path`, which is complete or not there; returns path. 0 and "": unknown.

    A connection that breaks is opened again, as long as each brings something; the next call goes on with
    what NAME.part holds. Without a sha256 it begins anew: nothing would show a mixture of two versions.
    """
    if path.exists() and (not sha256 or sha256_of(path) == sha256) and size in (0, path.stat().st_size):
        print(f"{path} is there", file=sys.stderr)
        return path
    part = path.with_name(f"{path.name}.part")
    if not sha256:
        part.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    free, done = shutil.disk_usage(path.parent).free, size_of(part)
    require(size - done <= free, f"{path} needs {size - done:,} more bytes of disk, and {free:,} are free")
    while True:
        before = size_of(part)
        try:
            transfer(url, part, size)
            break
        except Broken as error:
            if size_of(part) <= before:
                raise ValueError(f"{path.name} could not be downloaded, {url}: {error}; {LATER}") from None
            print(f"{path.name}: {error}; going on", file=sys.stderr)
    found = sha256_of(part) if sha256 else ""
    if found != sha256 or (size and size_of(part) != size):
        what = f"{size_of(part):,} bytes, sha256 {found or 'unknown'}"
        part.unlink()
        raise ValueError(f"{url} is another file, {what}; expected {size:,}, {sha256}; removed, try again")
    part.replace(path)
    return path


def transfer(url: str, part: Path, size: int) -> None:
    """Append to `part` what is missing of a file; from the start if the server knows no ranges.

    Broken if the connection ends too early; ValueError if the server says that the file has another size.
    """
    done = size_of(part)
    if size and done == size:
        return
    if size and done > size:
        part.unlink()
        done = 0
    with opened(url, done) as reply:
        if reply.status != 206:
            done = 0
        length = reply.headers.get("Content-Length") or ""
        total = done + int(length) if re.fullmatch("[0-9]{1,18}", length) else size
        require(size in (0, total), f"{url} has {total:,} bytes; expected {size:,}. Try again later")
        shown = 0.0
        if done == 0:
            part.unlink(missing_ok=True)
        with open(part, "ab") as file:
            while True:
                with network(url):
                    block = reply.read(BLOCK)
                if not block:
                    break
                file.write(block)
                done += len(block)
                require(done <= (total or done), f"{url} sends more than the {total:,} bytes that it has")
                if time.monotonic() - shown > 1 or done == total:
                    shown = time.monotonic()
                    of = f" of {total / 1e6:,.1f}" if total else ""
                    print(f"downloading {part.stem}: {done / 1e6:,.1f}{of} MB", file=sys.stderr)
        if done < total:
            raise Broken(f"cut off after {done:,} of {total:,} bytes")


@contextlib.contextmanager
def opened(url: str, start: int = 0) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for a file from byte `start` on. Broken, or ValueError if that is refused."""
    require(is_safe(url), f"{url} is not https; tinylm downloads nothing else")
    headers = {"User-Agent": "tinylm", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with network(url):
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    with reply:
        require(is_safe(reply.url), f"{url} leads to {reply.url}, which is not https; tinylm does not follow")
        begins = str(reply.headers.get("Content-Range")).startswith(f"bytes {start}-")
        fits = reply.status == 200 or (reply.status == 206 and begins)
        require(fits, f"{url} sent another part of the file than asked for; try again later")
        yield reply


@contextlib.contextmanager
def network(url: str) -> Iterator[None]:
    """Around what talks to a server: Broken for whatever goes wrong there, ValueError for what it refuses."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500 or error.code == 429:
                raise Broken(f"the server is busy, {error.code}") from None
            login = "it needs a login" if error.code == 403 else "it does not exist, or needs a login"
            advice = "check the name, or get the files with a browser and import their folder"
            raise ValueError(f"{url} is refused ({error.code}): {login}; {advice}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Broken(" ".join(str(getattr(error, "reason", error) or repr(error)).split())) from None


def is_safe(url: str) -> bool:
    """Whether a URL is https, or leads to this computer."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    )


def size_of(path: Path) -> int:
    """The size of a file in bytes, 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()
