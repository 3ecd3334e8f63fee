"""Emoji that the pack does not hold.

The pack took about half of the base emoji, all those whose short name starts with certain words, in both
vendors' drawings. Each packed picture is recognised as the nearest drawing; every emoji whose short name
starts with the same word is left out, whichever vendor drew it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusionlib.zoo.making.exclusion import Mask
from fusionlib.zoo.making.packed import read_packed
from fusionlib.zoo.making.readers import Pictures

VENDORS = ("google", "twitter")
SAME = 12.0  # root mean square difference, of 255, below which two drawings are called the same


@dataclass(frozen=True)
class Drawing:
    """One vendor's picture of one emoji: its Unicode name in lower case, and the word it is split by."""

    name: str
    word: str


def read_emoji(folders: dict[str, Path]) -> tuple[Pictures, list[Drawing]]:
    """All base emoji but flags, on white: (n, 32, 32, 3), and what each is.

    Args:
        folders: vendor -> folder of ``emoji-datasource-VENDOR``.
    """
    from PIL import Image

    pictures, drawings = [], []
    for vendor in VENDORS:
        for entry in json.loads((folders[vendor] / "emoji.json").read_text(encoding="utf-8")):
            if entry["category"] in ("Flags", "Component") or not entry[f"has_img_{vendor}"]:
                continue
            image = Image.open(folders[vendor] / "img" / vendor / "64" / entry["image"]).convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            pictures.append(np.asarray(page.convert("RGB").resize((32, 32), Image.Resampling.BOX)))
            drawings.append(Drawing(entry["name"].lower(), entry["short_name"].split("_")[0]))
    return np.stack(pictures), drawings


def not_packed(pictures: Pictures, drawings: list[Drawing], packed: Pictures) -> Mask:
    """Which drawings may be used: (n,) booleans.

    Args:
        pictures: (n, 32, 32, 3).
        drawings: n of them.
        packed: (m, 32, 32, 3), rounded to 16 colours.
    """
    ours = pictures.reshape(len(pictures), -1).astype(np.float64)
    theirs = packed.reshape(len(packed), -1).astype(np.float64)
    squares = (theirs**2).sum(axis=1)[:, None] + (ours**2).sum(axis=1) - 2 * theirs @ ours.T
    distance = np.sqrt(np.maximum(squares, 0) / ours.shape[1])
    words = {drawings[index].word for index in distance.argmin(axis=1)}
    by_word = np.array([drawing.word not in words for drawing in drawings])
    return by_word & (distance.min(axis=0) >= SAME)


def pretraining_emoji(folders: dict[str, Path], pack: Path) -> tuple[Pictures, list[str]]:
    """Emoji for pretraining: (n, 32, 32, 3) and their names."""
    pictures, drawings = read_emoji(folders)
    free = not_packed(pictures, drawings, read_packed(pack, "emoji")[0])
    return pictures[free], [drawing.name for drawing, keep in zip(drawings, free, strict=True) if keep]
