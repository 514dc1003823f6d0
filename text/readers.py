"""Bytes to text. A file's content decides how it is read; anything unreadable is refused with its kind.

    UTF-8, UTF-16, UTF-32   with or without a byte order mark, which is no part of the text
    gzip, bzip2, xz         unpacked on the way
    zip                     each text file in it is a document
    anything else           ValueError with what it is (a picture, a Git LFS pointer, ...) and what to do

Everything is streamed. The name of a file counts only where many lie together: in a folder or a zip file.
"""

import codecs
import contextlib
import importlib
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

HEAD = 1 << 16  # bytes at the beginning that tell what a file is; a multiple of 4
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".json")  # the files of a folder or zip that are read
PACKED = {rb"\x1f\x8b\x08": "gzip", rb"BZh\d1AY&SY": "bz2", rb"\xfd7zXZ\0": "lzma"}  # pattern -> module
PACKED_SUFFIXES = (".gz", ".bz2", ".xz")
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
BOMS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # after UTF-32, whose mark begins with UTF-16's
WIDE = {
    "utf-32-le": (4, 3),
    "utf-32-be": (4, 0),
    "utf-16-le": (2, 1),
    "utf-16-be": (2, 0),
}  # see wide_encoding
LONGEST_ROW = 1 << 24  # characters: of a longer first row nobody can tell that it is JSON
REFUSED = {  # pattern -> what it is; what to do
    rb"version https://git-lfs\.": "a Git LFS pointer, not the text itself; fetch that with: git lfs pull",
    rb"/annex/objects/": "a git-annex pointer, not the text itself; fetch that with: git annex get",
    rb"PK(\x03\x04|\x05\x06)": "a zip file that is empty or inside another file; unpack it",
    rb".{257}ustar": "a tar archive; unpack it, and give the folder",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    rb"\x1f\x9d|7z\xbc\xaf\x27\x1c|Rar!": "a compressed archive; unpack it",
    rb"%PDF-": "a PDF; save its text as a .txt file",
    rb"\{\\rtf": "a text with formatting (RTF); save it as plain text",
    rb"\xd0\xcf\x11\xe0\xa1\xb1": "an Office document; save it as plain text",
    rb"PAR1|ARROW1": "a table of columns; save its rows as JSON rows (.jsonl)",
    rb"SQLite format 3": "a database; save its rows as JSON rows (.jsonl)",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP": "a picture; expected text",
}


@dataclass
class Document:
    """One text: a file, or a member of a zip file."""

    name: Path  # for messages
    opener: Callable[[], BinaryIO]
    nul: bool = False  # let NUL through: --clean drops it

    def pieces(self, size: int) -> Iterator[str]:
        """The text from the beginning, `size` bytes at a time. Keeps every character, also carriage returns.

        ValueError if it is no text, is damaged, or is not in the encoding that its beginning tells.
        """
        with contextlib.ExitStack() as stack:
            file, packed = stack.enter_context(self.opener()), False
            while True:
                head = self.read(file, HEAD, packed)
                file.seek(0)
                module = next((module for magic, module in PACKED.items() if re.match(magic, head)), "")
                if not module:
                    break
                unpacked = importlib.import_module(module).open(file, mode="rb")
                file, packed = stack.enter_context(unpacked), True
            for magic, what in REFUSED.items():
                if re.match(magic, head, re.DOTALL):
                    raise ValueError(f"{self.name} is {what}")
            encoding = encoding_of(head)
            decoder = codecs.getincrementaldecoder(encoding)()
            seen, block = 0, b"-"  # bytes decoded so far
            while block:
                block = self.read(file, size, packed)
                seen += len(block)
                try:
                    text = decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    # error.object is what was decoded: undecoded bytes of the block before, then this block.
                    where = seen - len(error.object) + error.start
                    shown = encoding.removesuffix("-sig").upper()
                    raise ValueError(
                        f"{self.name}: not {shown} at byte {where}; save the file as UTF-8"
                    ) from None
                if "\0" in text and not self.nul:
                    raise ValueError(
                        f"{self.name} holds NUL in its first {seen:,} bytes: it is binary or damaged; "
                        "if it is text, python data.py --clean drops them"
                    )
                yield text

    def kind(self) -> str:
        """Whether it is JSON "rows" (a list, or one a line), other "json", or plain "text": see json_kind."""
        return json_kind(self.name, self.pieces(HEAD))

    def read(self, file: BinaryIO, size: int, packed: bool) -> bytes:
        """Read up to `size` bytes; ValueError if compressed data are damaged."""
        try:
            return file.read(size)
        except Exception as error:  # of many types: each of these modules has its own
            if not packed and not isinstance(file, zipfile.ZipExtFile):
                raise
            raise ValueError(f"{self.name} cannot be unpacked: {error or type(error).__name__}") from None


def documents_in(path: Path, nul: bool = False) -> tuple[list[Document], Counter]:
    """The documents of one file, and what a zip file holds besides: {ending: number}."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return [Document(path, lambda: open(path, "rb"), nul)], Counter()
    try:
        archive = zipfile.ZipFile(path)
        members = {Path(info.filename): info for info in archive.infolist() if not info.is_dir()}
        kept, left_out = sort_out({name: info.file_size for name, info in members.items()})
        if "[Content_Types].xml" in archive.namelist() or "mimetype" in archive.namelist():
            raise ValueError("it is an Office document or an e-book; save it as plain text")
        if not kept and len(members) == 1:  # text8.zip holds `text8`
            kept, left_out = list(members), Counter()
        for info in members.values():
            if info.flag_bits & 1:
                raise ValueError("it is encrypted; unpack it")
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None
    return [Document(path / name, partial(archive.open, members[name]), nul) for name in kept], left_out


def sort_out(sizes: dict[Path, int]) -> tuple[list[Path], Counter]:
    """Of the files of a folder or zip ({name: bytes}), those that are read, sorted; the others' endings."""
    kept, left_out = [], Counter()
    for name, size in sizes.items():
        plain = name.with_suffix("") if name.suffix.lower() in PACKED_SUFFIXES else name
        if any(part.startswith((".", "__MACOSX")) for part in name.parts):
            left_out["hidden"] += 1
        elif plain.suffix.lower() not in SUFFIXES:
            left_out[name.suffix.lower() or "without ending"] += 1
        elif not size:
            left_out["empty"] += 1
        else:
            kept.append(name)
    return sorted(kept, key=Path.as_posix), left_out


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins with these bytes. What holds no NUL is UTF-8, or an error later."""
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            return encoding
    return wide_encoding(head) if b"\0" in head else "utf-8"


def wide_encoding(head: bytes) -> str:
    """The encoding of a beginning that holds NUL: UTF-32 or UTF-16 without a mark, or else UTF-8.

    A wide encoding is accepted if it gives nothing but assigned characters, and if the high bytes of the
    characters show it: they are NUL more often than the low bytes, and do not vary more. In what could be
    UTF-8 with some NUL in it, no low byte is NUL, and there are three times as many different ones.
    """
    narrow = decodes(head, "utf-8")
    best, most = "utf-8", 0
    for encoding, (width, high) in WIDE.items():
        high_bytes = head[high::width]
        low_bytes = head[width - 1 - high :: width]
        if not decodes(head, encoding) or not high_bytes.count(0) > low_bytes.count(0):
            continue
        kinds, low_kinds = len(set(high_bytes)), len(set(low_bytes))
        if set(high_bytes) != {0} and kinds > (low_kinds / 3 if narrow else low_kinds):
            continue
        if narrow and low_bytes.count(0):
            continue
        if high_bytes.count(0) * width > most:
            best, most = encoding, high_bytes.count(0) * width
    return best


def decodes(head: bytes, encoding: str) -> bool:
    """Whether these bytes, perhaps cut inside a character, are text in this encoding."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    if encoding == "utf-8":
        return True
    return not any(unicodedata.category(c) in ("Cc", "Cn", "Co") and not c.isspace() for c in set(text))


def json_kind(name: Path, pieces: Iterable[str]) -> str:
    """Whether a text is JSON "rows" (a list, or one a line), another "json" value, or plain "text".

    Its first value tells. A name that ends in .jsonl promises rows, one in .json some JSON.
    """
    text, wanted = "", 0
    for piece in pieces:
        text += piece
        start = text.lstrip("\ufeff \t\r\n")
        if len(text) < wanted or not start:
            continue
        wanted = 2 * len(text)  # a long first row is tried again only when it has doubled
        kind = first_value(start)
        if kind or len(text) > LONGEST_ROW:
            break
    kind = first_value(text.lstrip("\ufeff \t\r\n")) or "text"
    suffixes = {suffix.lower() for suffix in name.suffixes}
    if kind == "text" and suffixes & {".jsonl", ".ndjson"}:
        return "rows"
    return "json" if kind == "text" and ".json" in suffixes else kind


def first_value(text: str) -> str:
    """The kind of a text by its first JSON value; "" if that is not complete yet."""
    if not text.startswith(("{", "[")):
        return "text"
    in_list = text.startswith("[")
    value = text[1:].lstrip() if in_list else text
    try:
        row, end = json.JSONDecoder().raw_decode(value)
    except json.JSONDecodeError as error:
        incomplete = error.pos >= len(value) - 8 or error.msg.startswith("Unterminated")
        return "" if incomplete else "text"
    except (ValueError, RecursionError):  # thousands of digits, or of lists in lists
        return "rows" if in_list else "text"
    if in_list:
        return "rows" if isinstance(row, (dict, str)) and value[end:].lstrip()[:1] in (",", "]") else "text"
    return "json" if "\n" in value[:end] else "rows"
