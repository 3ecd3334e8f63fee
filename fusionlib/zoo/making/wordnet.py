"""WordNet's nouns, verbs, adjectives and adverbs as Debian packages them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
_QUOTED = re.compile(r'"([^"]*)"?')


@dataclass(frozen=True)
class Synset:
    """One meaning.

    Attributes:
        part: of speech, one of :data:`PARTS`.
        words: synonyms, spaces for underscores, the usual one first.
        definition: without the examples.
        examples: sentences or phrases in which one of the words is used.
        parents: offsets of the hypernyms.
    """

    part: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    parents: tuple[str, ...]


def read_wordnet(folder: Path) -> dict[tuple[str, str], Synset]:
    """All synsets of the four ``data`` files: (part, offset) -> synset, in the files' order."""
    found = {}
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text("utf-8", errors="replace").splitlines():
            if not line.startswith("  "):  # the licence in front
                facts, _, gloss = line.partition(" | ")
                found[part, facts[:8]] = _synset(part, facts.split(), gloss)
    return found


def _synset(part: str, facts: list[str], gloss: str) -> Synset:
    count = int(facts[3], 16)
    words = (re.sub(r"\([a-z]+\)$", "", word).replace("_", " ") for word in facts[4 : 4 + 2 * count : 2])
    pointers = facts[4 + 2 * count + 1 :]
    parents = (pointers[k + 1] for k in range(len(pointers) - 1) if pointers[k] in ("@", "@i"))
    definition = gloss.partition('"')[0].strip().rstrip(";:, ").strip()
    examples = (example.strip() for example in _QUOTED.findall(gloss))
    return Synset(part, tuple(words), definition, tuple(e for e in examples if e), tuple(parents))
