"""Verses of a Bible module of the SWORD project (``zText``, compressed with zlib, OSIS markup)."""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections import OrderedDict
from pathlib import Path

from fusionlib.core import CheckpointError

_CHAPTER = re.compile(r'<chapter n="\d+" osisID="([^"]+)" sID=')
_HIDDEN = re.compile(r"<(note|title)\b[^>]*?(?<!/)>.*?</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")


def read_verses(folder: Path, testament: str) -> OrderedDict[tuple[str, int], str]:
    """(chapter such as ``Matt.1``, number of the verse from 1 on) -> its words, in the module's order.

    Args:
        folder: of one module.
        testament: "ot" or "nt".

    Raises:
        CheckpointError: the three files of a testament do not fit together.
    """
    blocks, places, packed = ((folder / f"{testament}.{end}").read_bytes() for end in ("bzs", "bzv", "bzz"))
    try:
        books = [_book(packed, *struct.unpack_from("<II", blocks, at)) for at in range(0, len(blocks), 12)]
        entries = [_entry(books, *struct.unpack_from("<IIH", places, at)) for at in range(0, len(places), 10)]
    except (struct.error, zlib.error, IndexError) as error:
        raise CheckpointError(f"{folder} is no zText module compressed with zlib ({error}).") from error
    verses: OrderedDict[tuple[str, int], str] = OrderedDict()
    chapter, number = "", 0
    for entry in entries:
        begins = _CHAPTER.search(entry)
        if begins:
            chapter, number = begins[1], 0
        elif chapter:
            number += 1
            words = plain(entry)
            if words:
                verses[chapter, number] = words
    return verses


def plain(osis: str) -> str:
    """The words of a piece of OSIS: notes, titles and tags taken out, white space made single."""
    without = _HIDDEN.sub(" ", osis.replace("\N{PILCROW SIGN}", " "))
    # a footnote stands where a space was: only so are the words on both sides of it kept apart
    words = html.unescape(_TAG.sub("", without))
    return re.sub(r"\s+([,.;:!?’”])", r"\1", re.sub(r"\s+", " ", words)).strip()


def _book(packed: bytes, offset: int, size: int) -> bytes:
    return zlib.decompress(packed[offset : offset + size]) if size else b""


def _entry(books: list[bytes], book: int, start: int, size: int) -> str:
    return books[book][start : start + size].decode("utf-8", errors="replace") if size else ""
