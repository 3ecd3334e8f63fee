"""Render the scenes of tiny-nyu: ``python -m fusionlib.zoo.making.tiny_nyu_data --out FOLDER``; about two minutes.

A split's scenes have seeds of their own, so that no room is in two splits. The shipped files are this script's.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from fusionlib.zoo.files import hash_file, write_atomically
from fusionlib.zoo.making.raycast import Array
from fusionlib.zoo.making.scenes import CLASSES, UNLABELLED, Picture, draw_room, render

SPLITS = {"train": (0, 320), "val": (100_000, 60), "test": (200_000, 100)}  # first seed, scenes


def encode(picture: Picture) -> dict[str, bytes]:
    """The four columns of one row.

    ``image``: lossless WebP. ``label``: PNG of class indices, 255 for none. ``depth``: 16-bit PNG, centimetres, 0 for
    none. ``normal``: PNG of (n + 1) x 127.5 per axis; what it says where the depth is 0 has no meaning.
    """
    label = np.where(picture.label < 0, UNLABELLED, picture.label)
    return {
        "image": _file(picture.image, "WEBP", lossless=True, method=6),
        "label": _file(label.astype(np.uint8), "PNG", optimize=True),
        "depth": _file((picture.depth * 100).round().astype(np.uint16), "PNG", optimize=True),
        "normal": _file(((picture.normal + 1) * 127.5).round().astype(np.uint8), "PNG", optimize=True),
    }


def make_split(split: str, scenes: int | None = None) -> list[dict[str, bytes]]:
    """The rows of a split, or its first ``scenes`` ones."""
    first, number = SPLITS[split]
    seeds = range(first, first + (number if scenes is None else scenes))
    return [encode(render(draw_room(seed), seed)) for seed in seeds]


def write_split(path: Path, rows: list[dict[str, bytes]]) -> None:
    """Rows as a Parquet file whose columns ``datasets`` decodes as pictures."""
    from datasets import Dataset, Features, Image

    columns: dict[str, Any] = {
        name: [{"bytes": row[name], "path": None} for row in rows] for name in ("image", "label", "depth", "normal")
    }
    table = Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))
    write_atomically(path, lambda temporary: table.to_parquet(temporary))


def _file(pixels: Array, kind: str, **options: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fusionlib.zoo.making.tiny_nyu_data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write_split(out / f"scenes-{split}.parquet", make_split(split))
    facts = {
        "script": "fusionlib.zoo.making.tiny_nyu_data",
        "classes": CLASSES,
        "splits": {split: {"first_seed": first, "scenes": number} for split, (first, number) in SPLITS.items()},
        "files": {path.name: hash_file(path) for path in sorted(out.glob("*.parquet"))},
    }
    write_atomically(
        out / "scenes.json",
        lambda temporary: temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8"),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
