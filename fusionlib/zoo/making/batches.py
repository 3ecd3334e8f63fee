"""Batches of distorted pictures with fixed shares per source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusionlib.core import ParameterError
from fusionlib.zoo.making import augment
from fusionlib.zoo.making.pool import SOURCES, Pool

DIGITS = 10  # the first rows of the bank are the digits, see captions.glyph_concepts
_DEGREES = {"glyphs": 15, "emoji": 10, "mnist": 10, "fashion": 10, "animals": 10, "textures": 30}


@dataclass(frozen=True)
class Mix:
    """What a stage's batches are made of.

    Attributes:
        shares: fraction of a batch per source, in the order of :data:`~fusionlib.zoo.making.pool.SOURCES`.
        per: most pictures per concept, for the last five sources in the same order; None means all.
        photos: whether glyphs may lie on pictures, with parts of other glyphs beside, digits three times as often.
    """

    shares: tuple[float, ...]
    per: tuple[int | None, ...]
    photos: bool

    def counts(self, batch_size: int) -> dict[str, int]:
        """Pictures per source; each source has at least one, glyphs fill up the rest.

        Raises:
            ParameterError: the batch is too small for the sources.
        """
        counts = {s: max(1, round(share * batch_size)) for s, share in zip(SOURCES, self.shares, strict=True)}
        counts["glyphs"] += batch_size - sum(counts.values())
        if counts["glyphs"] < 1:
            raise ParameterError(f"A batch of {batch_size} has no room for {len(SOURCES)} sources; take 32 or more.")
        return counts


class Batches:
    """An endless supply of (pictures in [-1, 1], rows of the bank)."""

    def __init__(self, pool: Pool, mix: Mix, batch_size: int, seed: int) -> None:
        self.mix = mix
        self.counts = mix.counts(batch_size)
        self.generator = torch.Generator().manual_seed(seed)
        limits = dict(zip(SOURCES, (None, None, *mix.per), strict=True))
        self.data = {source: pool.limited(source, limits[source]) for source in SOURCES}
        rows = self.data["glyphs"][1]
        self.weights = torch.where(rows < DIGITS, 3.0 if mix.photos else 1.0, 1.0)

    def draw(self) -> tuple[Tensor, Tensor]:
        """(batch_size, 3, 32, 32) pictures and (batch_size,) rows."""
        parts = []
        for source, count in self.counts.items():
            pictures, rows = self._pick(source, count)
            distorted = self._glyphs(pictures) if source == "glyphs" else self._pictures(source, pictures)
            parts.append((augment.noise(distorted.expand(-1, 3, -1, -1), self.generator), rows))
        return torch.cat([part[0] for part in parts]) * 2 - 1, torch.cat([part[1] for part in parts])

    def _pick(self, source: str, count: int) -> tuple[Tensor, Tensor]:
        pictures, rows = self.data[source]
        if source == "glyphs":
            index = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        else:
            index = torch.randint(len(rows), (count,), generator=self.generator)
        return pictures[index].float() / 255, rows[index]

    def _pictures(self, source: str, pictures: Tensor) -> Tensor:
        generator = self.generator
        if source == "emoji":  # white paper: warped as a negative, so that white comes in from outside
            pictures = 1 - augment.warp(1 - pictures, generator, degrees=_DEGREES[source])
            pictures = augment.invert_grey(pictures, generator)
        elif source == "textures":
            pictures = augment.warp(pictures, generator, degrees=_DEGREES[source], padding="reflection")
        elif source != "landsat":  # nine pixels in a fixed grid are left in place
            pictures = augment.warp(pictures, generator, degrees=_DEGREES[source])
        if source == "mnist":
            pictures = augment.blur(pictures, generator)
        if source in ("textures", "animals", "emoji"):
            pictures = augment.flip(pictures, generator)
        return augment.jitter(pictures, generator) if pictures.shape[1] == 3 else pictures

    def _glyphs(self, masks: Tensor) -> Tensor:
        generator, n = self.generator, len(masks)
        masks = augment.warp(masks, generator, degrees=_DEGREES["glyphs"])
        if self.mix.photos:
            others, _ = self._pick("glyphs", n)
            masks = augment.beside(masks, others, generator, probability=0.35)
        behind = augment.colour_field(n, generator)
        if self.mix.photos:
            behind = torch.where(augment.chance(generator, 0.5, n), self._photos(n), behind)
        painted = augment.paint(masks, behind, generator)
        coloured = augment.chance(generator, 0.6, n)
        return augment.blur(torch.where(coloured, painted, masks.expand(-1, 3, -1, -1)), generator)

    def _photos(self, n: int) -> Tensor:
        """Emoji and textures, half and half, distorted and with their channels shuffled."""
        emoji, textures = self._pick("emoji", n // 2)[0], self._pick("textures", n - n // 2)[0]
        photos = torch.cat([emoji, textures])[torch.randperm(n, generator=self.generator)]
        photos = augment.warp(photos, self.generator, degrees=30, padding="reflection")
        return augment.permute_channels(augment.flip(photos, self.generator), self.generator)
