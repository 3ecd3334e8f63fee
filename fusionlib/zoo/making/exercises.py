"""What a small T5 is trained on: exercises whose answers the text itself holds, so that no label of a task is seen.

Every exercise maps a text to a text. Besides filling gaps, which is T5's own, there are three that teach what gaps
alone would take far longer to teach: to answer a question about a text with a word, and to look at all of the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor

from fusionlib.zoo.making.corpus import SEP
from fusionlib.zoo.making.tokenizing import END, SPECIAL, pack_windows

LONGEST = 64  # tokens of a source
LONGEST_ANSWER = 40
FIRST_GAP = SPECIAL.index("<x0>")
GAPS, LONGEST_GAP = 5, 5
KIND_OF = f"{SEP}It is a kind of "
ORIGINS = {"wordnet": "dictionary", "bible": "bible", "novels": "novel", "reviews": "review", "food": "review",
           "mails": "mail"}  # fmt: skip

Pair = tuple[list[int], list[int]]  # tokens of the source and of the answer, both with the end token


@dataclass(frozen=True)
class Exercise:
    """One kind of exercise.

    Attributes:
        share: of the training steps.
        batch_size: examples per step.
        draw: makes one example out of random numbers.
    """

    share: float
    batch_size: int
    draw: Callable[[random.Random], Pair]


def make_exercises(tokenizer: Tokenizer, documents: dict[str, list[str]], mixed: Sequence[str]) -> dict[str, Exercise]:
    """All kinds by name.

    Args:
        tokenizer: whose special tokens are those of ``tokenizing.SPECIAL``.
        documents: by source, from ``corpus.make_documents``.
        mixed: all of them, shuffled; gaps are cut into these.
    """
    windows = pack_windows(tokenizer, mixed, LONGEST)
    kinds = [doc.split(KIND_OF) for doc in documents["wordnet"] if KIND_OF in doc]
    verses = [doc.split(SEP) for doc in dict.fromkeys(documents["bible"]) if SEP in doc]
    origins: dict[str, list[str]] = {}
    for source, texts in documents.items():
        origins.setdefault(ORIGINS[source], []).extend(dict.fromkeys(text.partition(SEP)[0] for text in texts))

    def encode(source: str, answer: str) -> Pair:
        return tuple(
            [*tokenizer.encode(text, add_special_tokens=False).ids[: most - 1], END]
            for text, most in ((source, LONGEST), (answer, LONGEST_ANSWER))
        )  # type: ignore[return-value]

    def kind(rng: random.Random) -> Pair:
        definition, above = rng.choice(kinds)
        return encode(f"{_cut(definition)} it is a kind of", above.rstrip("."))

    def again(rng: random.Random) -> Pair:
        one, other = rng.sample(rng.choice(verses), 2)
        return encode(f"say it again : {one}", other)

    def origin(rng: random.Random) -> Pair:
        name = rng.choice(list(origins))
        return encode(f"where is this from ? {rng.choice(origins[name])}", name)

    return {
        "gaps": Exercise(0.6, 32, lambda rng: gaps(windows[rng.randrange(len(windows))], rng)),
        "kind": Exercise(0.25, 32, kind),
        "again": Exercise(0.05, 32, again),
        "origin": Exercise(0.1, 32, origin),
    }


def gaps(window: Tensor, rng: random.Random) -> Pair:
    """A window with :data:`GAPS` spans of 1 to :data:`LONGEST_GAP` tokens replaced by ``<x0>``, ``<x1>`` and so on.

    Args:
        window: int64 (length,); spans never touch.
    Returns: what is left of it, and the spans, each after its sign.
    """
    tokens = window.tolist()
    sizes = [rng.randint(1, LONGEST_GAP) for _ in range(GAPS)]
    kept = len(tokens) - sum(sizes)
    source: list[int] = []
    answer: list[int] = []
    at = before = 0
    for number, (place, size) in enumerate(zip(sorted(rng.sample(range(1, kept), GAPS)), sizes, strict=True)):
        start = at + place - before
        source += [*tokens[at:start], FIRST_GAP + number]
        answer += [FIRST_GAP + number, *tokens[start : start + size]]
        at, before = start + size, place
    return [*source, *tokens[at:], END], [*answer, END]


def _cut(text: str) -> str:
    return " ".join(text.split()[:40])
