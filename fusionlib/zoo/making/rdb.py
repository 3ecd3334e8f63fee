"""A reader of the data that an installed R package loads lazily: ``Rdata.rdx``, an index, and ``Rdata.rdb``."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError
from fusionlib.zoo.making.rda import read_value

_LZMA2 = [{"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME}]


def read_lazy(folder: Path, name: str) -> Any:
    """One variable of a package's data: strings as a list, a data frame as (columns, attributes).

    Args:
        folder: the package's ``data`` folder.
        name: of the variable.

    Raises:
        CheckpointError: the index lists no such variable, or the files are no such database.
    """
    tree, attributes = read_value(gzip.decompress((folder / "Rdata.rdx").read_bytes()))
    places, labels = tree[attributes["names"].index("variables")]
    if name not in labels["names"]:
        raise CheckpointError(f"{folder} holds no variable {name!r}, only {', '.join(labels['names'])}.")
    offset, length = (int(number) for number in places[labels["names"].index(name)])
    with (folder / "Rdata.rdb").open("rb") as file:
        file.seek(offset)
        return read_value(_unpack(file.read(length)))


def _unpack(record: bytes) -> bytes:
    """Four bytes of size, then zlib; or the letter Z between the two, then raw LZMA2."""
    (size,) = struct.unpack_from(">I", record)
    if record[4:5] == b"Z":
        data = lzma.decompress(record[5:], format=lzma.FORMAT_RAW, filters=_LZMA2)
    else:
        data = zlib.decompress(record[4:])
    if len(data) != size:
        raise CheckpointError(f"a record of an R database has {len(data)} bytes, and {size} were announced.")
    return data
