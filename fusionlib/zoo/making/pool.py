"""The pretraining pictures of all sources, with what each shows; none of them is in the pack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionlib.zoo.making import captions, exclusion, glyphs, readers
from fusionlib.zoo.making.captions import Concept
from fusionlib.zoo.making.emoji import pretraining_emoji
from fusionlib.zoo.making.packed import pad, read_packed, unpad, windows
from fusionlib.zoo.making.readers import Pictures

SOURCES = ("glyphs", "emoji", "mnist", "fashion", "animals", "landsat", "textures")


@dataclass
class Pool:
    """Pictures by source, and the bank of concepts.

    Attributes:
        pictures: source -> (n, 1 or 3, 32, 32) bytes; within a source in a random order drawn once.
        rows: source -> (n,) index of each picture's concept in the bank.
        names: name of each concept in the bank; equal names are one concept.
        captions: three captions per concept.
        facts: what was kept and left out, for the provenance.
    """

    pictures: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, source: str, pictures: Pictures, concepts: list[Concept], labels: Any, seed: int) -> None:
        """Append a source: (n, 32, 32) or (n, 32, 32, 3) bytes, its concepts, and each picture's concept."""
        order = np.random.default_rng([seed, SOURCES.index(source)]).permutation(len(pictures))
        tensor = torch.from_numpy(np.ascontiguousarray(pictures[order]))
        self.pictures[source] = tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
        self.rows[source] = torch.as_tensor(np.asarray(labels)[order]) + len(self.names)
        self.names += [concept.name for concept in concepts]
        self.captions += [concept.captions for concept in concepts]

    def limited(self, source: str, per: int | None) -> tuple[Tensor, Tensor]:
        """Pictures and rows of a source, the first ``per`` of each concept (all if None)."""
        rows = self.rows[source]
        if per is None:
            return self.pictures[source], rows
        chosen = torch.cat([torch.nonzero(rows == row).flatten()[:per] for row in rows.unique()])
        return self.pictures[source][chosen], rows[chosen]

    def fingerprint(self) -> str:
        """SHA-256 of pictures, rows and captions."""
        digest = hashlib.sha256(json.dumps([self.names, self.captions]).encode())
        for source in sorted(self.pictures):
            digest.update(self.pictures[source].numpy().tobytes() + self.rows[source].numpy().tobytes())
        return digest.hexdigest()


def make_pool(places: dict[str, Path], pack: Path, *, seed: int, say: Callable[[str], object]) -> Pool:
    """Read every source and leave out what is in the pack or too near to it.

    Args:
        places: source -> path, from :func:`fusionlib.zoo.making.sources.find`.
        pack: folder of the Parquet files.
        seed: of the order within a source, which decides the pictures that a stage with few sees.
        say: is given one line per source.
    """
    pool = Pool()
    masks, characters, facts = glyphs.pretraining_glyphs(places["fonts"], pack)
    pool.facts["glyphs"] = facts
    pool.add("glyphs", masks, captions.glyph_concepts(), characters, seed)
    pictures, names = pretraining_emoji({v: places[f"emoji-{v}"] for v in ("google", "twitter")}, pack)
    distinct = list(dict.fromkeys(names))
    pool.add("emoji", pictures, [captions.concept("emoji", name) for name in distinct],
             [distinct.index(name) for name in names], seed)  # fmt: skip
    _add_grey(pool, places, pack, seed)
    _add_landsat(pool, places["landsat"], pack, seed)
    _add_textures(pool, places["textures"], seed)
    pool.facts["pictures"] = {source: len(pool.pictures[source]) for source in SOURCES}
    for source in SOURCES:
        say(f"{source}: {len(pool.pictures[source]):,} pictures of {len(pool.rows[source].unique())} concepts")
    return pool


def _add_grey(pool: Pool, places: dict[str, Path], pack: Path, seed: int) -> None:
    for source, words, read, cosine, most in (
        ("mnist", captions.DIGITS, readers.read_mnist, 0.995, None),
        ("fashion", captions.FASHION, readers.read_fashion, exclusion.NEAR, 500),
        ("animals", captions.ANIMALS, readers.read_animals, exclusion.NEAR, None),
    ):
        pictures, labels = read(places[source])
        packed = unpad(read_packed(pack, source)[0])
        taken = exclusion.near_match(pictures, packed, cosine=cosine, mirrored=source == "animals")
        if source == "animals":  # one picture of each chain, none of a chain that is packed
            chains = exclusion.chains(pictures)
            taken = np.isin(chains, chains[taken]) | (chains != np.arange(len(chains)))
        free = np.flatnonzero(~taken)
        if most is not None:
            free = np.random.default_rng([seed, 100]).permutation(free)
            free = np.concatenate([free[labels[free] == label][:most] for label in range(len(words))])
        pool.facts[source] = {"in_source": len(pictures), "too_near_or_repeated": int(taken.sum())}
        pool.add(source, pad(pictures[free]), [captions.concept(source, word) for word in words], labels[free], seed)


def _add_landsat(pool: Pool, path: Path, pack: Path, seed: int) -> None:
    pixels, classes = readers.read_landsat(path)
    free = ~exclusion.shared_blocks(pixels, windows(read_packed(pack, "landsat")[0]))
    pool.facts["landsat"] = {"in_source": len(pixels), "sharing_a_block": int((~free).sum())}
    grid = ((np.arange(32) + 0.5) * 3 / 32).astype(int)  # nearest pixel, as in the pack
    pictures = pixels[free][:, grid][:, :, grid]
    words = list(captions.LANDSAT)
    concepts = [captions.concept("landsat", word, called=captions.LANDSAT[word]) for word in words]
    pool.add("landsat", pictures, concepts, [words.index(word) for word in classes[free]], seed)


def _add_textures(pool: Pool, folder: Path, seed: int, per: int = 100) -> None:
    """Patches from the strip at 40.5 to 50 % of each picture's width; the pack took none from there."""
    from PIL import Image

    generator = np.random.default_rng([seed, 200])
    pictures, labels = [], []
    for label, name in enumerate(captions.TEXTURES):
        image = Image.open(folder / name).convert("RGB")
        left, right = int(np.ceil(image.width * 0.405)), int(image.width * 0.5)
        widest = min(96, right - left, image.height)
        for _ in range(per):
            side = int(generator.integers(min(40, widest), widest + 1))
            x = int(generator.integers(left, right - side + 1))
            y = int(generator.integers(0, image.height - side + 1))
            patch = image.crop((x, y, x + side, y + side)).resize((32, 32), Image.Resampling.BILINEAR)
            pictures.append(np.asarray(patch))
            labels.append(label)
    concepts = [captions.concept("textures", word) for word in captions.TEXTURES.values()]
    pool.add("textures", np.stack(pictures), concepts, labels, seed)
