"""A reader of R's binary formats (XDR) as far as a data frame or a list of strings needs them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fusionlib.core import CheckpointError

_SYMBOL, _PAIRLIST, _CHARACTERS = 1, 2, 9
_LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST = 10, 13, 14, 16, 19
_NULL, _REFERENCE = 254, 255


def read_data_frame(path: Path) -> dict[str, Any]:
    """The only data frame in an ``.rda`` file: column name -> array; factors come as arrays of strings.

    Raises:
        CheckpointError: the file is no XDR ``.rda`` of version 2, or holds something else than a data frame.
    """
    data = path.read_bytes()
    for magic, decompress in ((b"\xfd7zXZ", lzma.decompress), (b"BZh", bz2.decompress), (b"\x1f\x8b", gzip.decompress)):
        if data.startswith(magic):
            data = decompress(data)
    if not data.startswith(b"RDX2\nX\n"):
        raise CheckpointError(f"{path} is not an R data file of version 2 in XDR; r-cran-mlbench 2.1-3 was expected.")
    reader = _Reader(data, start=7 + 12)  # magic, format, then three version numbers
    variables = reader.item()
    if not isinstance(variables, dict) or len(variables) != 1:
        raise CheckpointError(f"{path} should hold one variable.")
    columns, attributes = next(iter(variables.values()))
    return {
        name: _factor(column) if isinstance(column, tuple) else column
        for name, column in zip(attributes["names"], columns, strict=True)
    }


def read_value(data: bytes) -> Any:
    """One value as R's ``saveRDS`` writes it in XDR, decompressed already; with attributes, (value, attributes).

    Raises:
        CheckpointError: the bytes are nothing of the kind.
    """
    magic, version = data[:2], int.from_bytes(data[2:6])
    if magic != b"X\n" or version not in (2, 3):
        raise CheckpointError("this is not a value that R wrote in XDR, format version 2 or 3.")
    start = 2 + 12 if version == 2 else 2 + 12 + 4 + int.from_bytes(data[14:18])  # version 3 names its encoding
    return _Reader(data, start).item()


def _factor(column: tuple[Any, dict[str, Any]]) -> Any:
    values, attributes = column
    return np.asarray(attributes["levels"])[values - 1] if "levels" in attributes else values


class _Reader:
    """A cursor over the serialised tree. Vectors with attributes come as (vector, attributes)."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.at, self.references = data, start, []

    def integer(self) -> int:
        (value,) = struct.unpack_from(">i", self.data, self.at)
        self.at += 4
        return value

    def vector(self, dtype: str, native: type) -> Any:
        values = np.frombuffer(self.data, dtype, count=self.integer(), offset=self.at)
        self.at += values.nbytes
        return values.astype(native)

    def item(self) -> Any:
        flags = self.integer()
        kind, has_attributes, has_tag = flags & 0xFF, bool(flags & 0x200), bool(flags & 0x400)
        if kind == _NULL:
            return None
        if kind == _REFERENCE:
            return self.references[(flags >> 8 or self.integer()) - 1]
        if kind == _SYMBOL:
            self.references.append(self.item())
            return self.references[-1]
        if kind == _PAIRLIST:
            return self.pairs(has_attributes, has_tag)
        if kind == _CHARACTERS:
            length = self.integer()
            self.at += max(length, 0)
            return self.data[self.at - length : self.at].decode("latin-1") if length >= 0 else None
        if kind in (_INTEGER, _LOGICAL):
            value: Any = self.vector(">i4", np.int64)
        elif kind == _REAL:
            value = self.vector(">f8", np.float64)
        elif kind in (_STRINGS, _LIST):
            value = [self.item() for _ in range(self.integer())]
        else:
            raise CheckpointError(f"The R data file holds an object of type {kind}, which this reader does not know.")
        return (value, self.item() or {}) if has_attributes else value

    def pairs(self, has_attributes: bool, has_tag: bool) -> dict[str, Any]:
        """A linked list of tagged values; the first pair's flags are read already."""
        pairs: dict[str, Any] = {}
        while True:
            if has_attributes:
                self.item()
            tag = self.item() if has_tag else str(len(pairs))
            pairs[tag] = self.item()
            flags = self.integer()
            if flags & 0xFF == _NULL:
                return pairs
            has_attributes, has_tag = bool(flags & 0x200), bool(flags & 0x400)
