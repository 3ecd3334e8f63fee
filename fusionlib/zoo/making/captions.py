"""What the pretraining pictures are called: concepts, three captions each.

None of the captions is one of the prompts that the heads were made of, up to "the capital letter A", which
the first implementation used too.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FASHION = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
LANDSAT = {  # class in the source -> name in captions, as in the heads' prompts
    "red soil": "red soil",
    "cotton crop": "cotton field",
    "grey soil": "grey soil",
    "damp grey soil": "moist brown earth",
    "vegetation stubble": "vegetation stubble",
    "very damp grey soil": "wet black mud",
}
TEXTURES = {  # picture in scikit-image -> material
    "brick.png": "brick",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "chelsea.png": "fur",
    "hubble_deep_field.jpg": "stars",
    "ihc.png": "stained tissue",
    "coins.png": "coins",
    "text.png": "printed text",
}
_TEMPLATES = {
    "digit": ("the digit {}", "a printed number {}", "the figure {}"),
    "capital": ("the capital letter {}", "a printed capital {}", "the letter {} in upper case"),
    "small": ("the small letter {}", "a printed small {}", "the letter {} in lower case"),
    "emoji": ("{}", "an icon: {}", "a picture of {}"),
    "mnist": ("handwritten {}", "a handwritten figure {}", "{} in handwriting"),
    "fashion": ("clothes: {}", "one {}, something to wear", "a grey picture of one {}"),
    "animals": ("the shape of one {}, an animal", "one {} as a shape", "animal shape: {}"),
    "landsat": ("land cover: {}", "{} as seen by a satellite", "ground: {}"),
    "textures": ("material: {}", "the surface of {}", "a pattern: {}"),
}


@dataclass(frozen=True)
class Concept:
    """Something a picture can show.

    Attributes:
        name: concepts of the same name are the same thing, whatever pictures they come with.
        captions: three of them.
    """

    name: str
    captions: tuple[str, str, str]


def concept(kind: str, name: str, *, called: str | None = None) -> Concept:
    """The concept ``name`` with the captions of a kind, in which it may be called otherwise."""
    first, second, third = (template.format(called or name) for template in _TEMPLATES[kind])
    return Concept(name, (first, second, third))


def glyph_concepts() -> list[Concept]:
    """Ten digits, 26 capitals, 26 small letters, in the order in which glyphs are drawn."""
    return [
        *(concept("digit", word) for word in DIGITS),
        *(concept("capital", f"capital {letter}", called=letter) for letter in string.ascii_uppercase),
        *(concept("small", f"small {letter}", called=letter) for letter in string.ascii_lowercase),
    ]


def same_concept(names: Sequence[str]) -> Tensor:
    """(n, n) booleans: whether two rows of the bank are different captions of one concept.

    These are taken out of each other's negatives: a printed three is no wrong answer for a written three. The
    diagonal is false, since a row is its own positive.
    """
    import torch

    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = torch.tensor([numbers[name] for name in names])
    return (groups[:, None] == groups[None]) & ~torch.eye(len(names), dtype=torch.bool)
