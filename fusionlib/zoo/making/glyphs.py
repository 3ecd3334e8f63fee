"""Letters and digits of the AEnigma fonts, from families that no packed picture shows.

The pack's letters were drawn at 44 points, cut out and fitted to 26 pixels. Drawn the same way, each packed
letter is recognised without doubt (mean difference under 3 of 255, the next font's over 10), so the packed
fonts are read off the pack. The pack split its fonts by family, the first word of their names; a whole family
is left out once one of its fonts is recognised.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionlib.zoo.making.packed import read_packed
from fusionlib.zoo.making.readers import Labels, Pictures

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SAME = 4.0  # mean absolute difference, of 255, below which two drawings show the same glyph
FAMILIES = 51  # as many as the first implementation kept for pretraining


@dataclass(frozen=True)
class Fonts:
    """All fonts, drawn.

    Attributes:
        names: file names.
        families: first words of the fonts' names.
        glyphs: (fonts, 62, 32, 32), white on black, in the order of :data:`CHARACTERS`.
    """

    names: list[str]
    families: list[str]
    glyphs: Pictures


def draw_fonts(folder: Path) -> Fonts:
    """Draw the 62 characters of every ``.ttf`` file in a folder."""
    from PIL import ImageFont

    paths = sorted(folder.glob("*.ttf"))
    families = [(ImageFont.truetype(path, 44).getname()[0] or path.stem).split()[0] for path in paths]
    return Fonts([path.name for path in paths], families, np.stack([draw(path, CHARACTERS) for path in paths]))


def draw(path: Path, characters: str) -> Pictures:
    """Characters of one font as the pack draws them: (characters, 32, 32); a blank glyph stays black."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(path, 44)
    pictures = np.zeros((len(characters), 32, 32), np.uint8)
    for picture, character in zip(pictures, characters, strict=True):
        canvas = Image.new("L", (264, 264))
        ImageDraw.Draw(canvas).text((88, 88), character, fill=255, font=font)
        box = canvas.getbbox()
        if box is None:
            continue
        ink = canvas.crop(box)
        scale = 26 / max(ink.size)
        width, height = (max(1, int(side * scale)) for side in ink.size)
        top, left = (32 - height) // 2, (32 - width) // 2
        fitted = ink.resize((width, height), Image.Resampling.BILINEAR)
        picture[top : top + height, left : left + width] = np.asarray(fitted)
    return pictures


def recognise(fonts: Pictures, letters: Pictures, labels: Labels) -> tuple[NDArray[np.bool_], int]:
    """Which fonts a set of letters was drawn with.

    Args:
        fonts: (fonts, 26, 32, 32), A to Z.
        letters: (n, 32, 32).
        labels: (n,), 0 for A.

    Returns:
        (fonts,) booleans, true where the font is the only likely one for some letter; and how many letters
        look like no font at all.
    """
    seen, strange = np.zeros(len(fonts), bool), 0
    flat = fonts.reshape(*fonts.shape[:2], -1).astype(np.float32)
    for letter, label in zip(letters.reshape(len(letters), -1).astype(np.float32), labels, strict=True):
        distance = np.abs(flat[:, label] - letter).mean(axis=1)
        first, second = np.partition(distance, 1)[:2]
        strange += bool(first >= SAME)
        if first < SAME and second > 2 * first + 1:
            seen[distance.argmin()] = True
    return seen, strange


def usable(glyphs: Pictures) -> bool:
    """Whether one font's (62, 32, 32) glyphs are all there, digits and letters of a case each all different."""
    if not glyphs.reshape(len(glyphs), -1).any(axis=1).all():
        return False
    groups = (glyphs[:10], glyphs[10:36], glyphs[36:])
    return all(len({glyph.tobytes() for glyph in group}) == len(group) for group in groups)


def legibility(digits: Pictures, references: Pictures) -> float:
    """Mean over the digits of the highest cosine with a plain typeface's same digit.

    Args:
        digits: (10, 32, 32).
        references: (typefaces, 10, 32, 32).
    """
    ours = digits.reshape(10, -1).astype(np.float32)
    theirs = references.reshape(len(references), 10, -1).astype(np.float32)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=2) + 1e-6
    return float((np.einsum("dp,rdp->rd", ours, theirs) / norms).max(axis=0).mean())


def pretraining_glyphs(fonts_folder: Path, pack: Path) -> tuple[Pictures, Labels, dict[str, object]]:
    """Glyphs for pretraining: (n, 32, 32), indices into :data:`CHARACTERS`, and facts for the provenance.

    Of the families that the pack does not show, the most legible :data:`FAMILIES` are taken: the others are
    mostly fonts that the pack left out as illegible. A glyph that looks like a packed letter all the same
    (plain bars do) is dropped.
    """
    fonts = draw_fonts(fonts_folder)
    packed, labels = read_packed(pack, "letters")
    packed = packed[..., 0]
    seen, strange = recognise(fonts.glyphs[:, 10:36], packed, labels)
    taken = {family for family, hit in zip(fonts.families, seen, strict=True) if hit}
    references = _plain_digits()
    scores: dict[str, float] = {}
    members: dict[str, list[int]] = {}
    for index, family in enumerate(fonts.families):
        if family not in taken and usable(fonts.glyphs[index]):
            members.setdefault(family, []).append(index)
            score = legibility(fonts.glyphs[index, :10], references)
            scores[family] = max(scores.get(family, 0.0), score)
    kept = sorted(sorted(scores, key=lambda family: -scores[family])[:FAMILIES])
    chosen = [index for family in kept for index in members[family]]
    glyphs = fonts.glyphs[chosen].reshape(-1, 32, 32)
    characters = np.tile(np.arange(len(CHARACTERS)), len(chosen))
    near = looks_like(glyphs, packed)
    facts: dict[str, object] = {
        "fonts": [fonts.names[index] for index in chosen],
        "families": kept,
        "families_left_out": len(taken),
        "packed_letters_of_no_known_font": strange,
        "glyphs_dropped_as_near": int(near.sum()),
    }
    return glyphs[~near], characters[~near], facts


def looks_like(glyphs: Pictures, packed: Pictures) -> NDArray[np.bool_]:
    """Whether each (n, 32, 32) glyph is within :data:`SAME` of some packed picture."""
    theirs = packed.reshape(len(packed), -1).astype(np.int16)
    flat = glyphs.reshape(len(glyphs), -1).astype(np.int16)
    # most pairs are told apart by their total ink alone, which bounds the difference from below
    inks, limit = theirs.sum(axis=1, dtype=np.int64), SAME * flat.shape[1]
    near = np.zeros(len(flat), bool)
    for index, glyph in enumerate(flat):
        likely = theirs[np.abs(inks - glyph.sum(dtype=np.int64)) < limit]
        near[index] = bool((np.abs(likely - glyph).sum(axis=1, dtype=np.int64) < limit).any())
    return near


def _plain_digits() -> Pictures:
    """Digits of the DejaVu typefaces that come with matplotlib: (6, 10, 32, 32)."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    styles = ("Sans", "Sans-Bold", "Serif", "Serif-Bold", "SansMono", "SansMono-Bold")
    return np.stack([draw(folder / f"DejaVu{style}.ttf", string.digits) for style in styles])
