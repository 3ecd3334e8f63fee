"""The pictures of the pack, which pretraining must never see."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fusionlib.core import CheckpointError
from fusionlib.zoo.making.readers import Labels, Pictures

SPLITS = ("train", "val", "test")


def read_split(pack: Path, task: str, split: str) -> tuple[Pictures, Labels]:
    """One split of the pack, decoded: (n, 32, 32, 3) bytes and labels.

    Raises:
        CheckpointError: there is no such file.
    """
    import pyarrow.parquet as pq
    from PIL import Image

    path = pack / f"{task}-{split}.parquet"
    if not path.is_file():
        raise CheckpointError(f"The pack has no file {path}. Give the folder of the Parquet files as --pack FOLDER.")
    table = pq.read_table(path)
    encoded = (row["bytes"] for row in table["image"].to_pylist())
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded])
    return pictures, np.asarray(table["label"].to_pylist(), np.int64)


def read_packed(pack: Path, task: str) -> tuple[Pictures, Labels]:
    """All three splits of a task, one after another."""
    parts = [read_split(pack, task, split) for split in SPLITS]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def pad(pictures: Pictures) -> Pictures:
    """(n, 28, 28) pictures with the pack's border of two black pixels: (n, 32, 32)."""
    return np.pad(pictures, ((0, 0), (2, 2), (2, 2)))


def unpad(pictures: Pictures) -> Pictures:
    """Packed (n, 32, 32, 3) pictures of a padded grey source without border and colour: (n, 28, 28)."""
    return np.ascontiguousarray(pictures[:, 2:30, 2:30, 0])


def windows(pictures: Pictures) -> Pictures:
    """Packed (n, 32, 32, 3) satellite pictures back to the 3 x 3 pixels that were enlarged: (n, 3, 3, 3)."""
    centres = [5, 16, 26]
    return np.ascontiguousarray(pictures[:, centres][:, :, centres])
