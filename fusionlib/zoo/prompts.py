"""How a text-to-text model is asked: a prompt around the text, and a word or two for every class."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusionlib.core import ParameterError, suggest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """The question of one task.

    Attributes:
        template: with the names of the examples' columns in braces, as ``str.format`` has them.
        words: the right answer of each class, in the order of the labels; different from each other.
    """

    template: str
    words: tuple[str, ...]

    def fill(self, example: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
        """The question about an example, and where in it the example's own texts begin and end.

        Raises: ParameterError, if the template names a column that the example has not.
        """
        whole, places = "", []
        for literal, column, _, _ in string.Formatter().parse(self.template):
            whole += literal
            if column is not None:
                if column not in example:
                    raise ParameterError(f"a prompt asks for {column!r}.{suggest(column, example)}")
                places.append((len(whole), len(whole) + len(example[column])))
                whole += example[column]
        return whole, places


def encode(
    tokenizer: Tokenizer, prompt: Prompt, examples: Sequence[Mapping[str, str]], longest: int
) -> list[list[int]]:
    """Token ids of each question, ``longest`` at most: what is over is cut from the end of the longest text.

    The prompt itself is never cut, so that a model always sees what it is asked.
    """
    filled = [prompt.fill(example) for example in examples]
    encodings = tokenizer.encode_batch([whole for whole, _ in filled], add_special_tokens=False)
    return [
        _shortened(encoding.ids, encoding.offsets, places, longest)
        for encoding, (_, places) in zip(encodings, filled, strict=True)
    ]


def _shortened(
    ids: list[int], offsets: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]], longest: int
) -> list[int]:
    if len(ids) <= longest:
        return ids
    # a token may begin with the space before its text, so its end says which text it belongs to
    owned = [[at for at, (_, end) in enumerate(offsets) if start < end <= stop] for start, stop in places]
    for _ in range(len(ids) - longest):
        fullest = max(owned, key=len, default=[])
        if not fullest:
            break
        fullest.pop()
    kept = {at for text in owned for at in text}
    inside = {at for at, (_, end) in enumerate(offsets) if any(start < end <= stop for start, stop in places)}
    return [token for at, token in enumerate(ids) if at in kept or at not in inside]


EMBEDDED = {
    "acceptability": Prompt("is this sentence acceptable or unacceptable ? {text}", ("unacceptable", "acceptable")),
    "reviews": Prompt("is this review negative or positive ? {text}", ("negative", "positive")),
    "food": Prompt("is this food review mixed or great ? {text}", ("mixed", "great")),
    "spam": Prompt("is this mail ham or spam ? {text}", ("ham", "spam")),
    "question": Prompt(
        "what does this question ask for ? {text}",
        ("date", "entity", "location", "organization", "person", "quantity"),
    ),
    "topic": Prompt(
        "what is defined here ? {text}",
        ("act", "animal", "artifact", "food", "place", "person", "plant", "substance"),
    ),
    "entailment": Prompt("premise : {text_a} hypothesis : {text_b} is it entailed ?", ("no", "yes")),
}
