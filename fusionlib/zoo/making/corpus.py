"""The text that the embedded language models are pretrained on, as documents; none touches a held-out text."""

from __future__ import annotations

import html
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fusionlib.zoo.making.leaks import Guard, held_out, read_texts, words
from fusionlib.zoo.making.mails import cut, read_mails
from fusionlib.zoo.making.rdb import read_lazy
from fusionlib.zoo.making.sword import read_verses
from fusionlib.zoo.making.wordnet import read_wordnet

SEP = " <sep> "
NOVELS = ("mansfieldpark", "prideprejudice", "sensesensibility")  # acceptability is made of the three others
LONGEST_REVIEW = 360
OLD_TESTAMENT = 6000


def make_documents(places: dict[str, Path], pack: Path, seed: int = 0) -> dict[str, list[str]]:
    """Documents by source, repeats included.

    Args:
        places: source -> path, from :func:`fusionlib.zoo.making.sources.find`.
        pack: folder of the tasks' Parquet files.
        seed: of every choice.
    """
    guard, makers = held_out(pack), {"wordnet": _definitions, "bible": _verses, "novels": _novels,
                                     "reviews": _reviews, "food": _food, "mails": _mails}  # fmt: skip
    return {name: make(places, pack, guard, random.Random(f"{seed} {name}")) for name, make in makers.items()}


def _definitions(places: dict[str, Path], pack: Path, guard: Guard, rng: random.Random) -> list[str]:
    """Each synset once, in one of three forms, and half of the examples; without the synsets of any task and split."""
    used = {
        " ".join(words(text))
        for task in ("topic", "entailment", "similarity")
        for split in ("train", "val", "test")
        for row in read_texts(pack, task, split)
        for text in row[: 1 if task == "entailment" else 2]
    }
    synsets, documents = read_wordnet(places["wordnet"]), []
    for synset in synsets.values():
        if " ".join(words(synset.definition)) in used or guard.touches(synset.definition):
            continue
        form, above = rng.random(), synsets.get((synset.part, next(iter(synset.parents), "")))
        if form < 0.45 and above is not None:
            documents.append(f"{synset.definition}{SEP}It is a kind of {above.words[0]}.")
        elif form < 0.8:
            documents.append(f"{synset.words[0]} : {synset.definition}")
        else:
            documents.append(synset.definition)
        documents += [each for each in synset.examples if rng.random() < 0.5 and not guard.touches(each)]
    return documents


def _verses(places: dict[str, Path], pack: Path, guard: Guard, rng: random.Random) -> list[str]:
    """Both translations of New Testament verses, twice; some of the Old in one. No chapter of a held-out verse."""
    old, new = (read_verses(places[name], "nt") for name in ("kjv", "web"))
    unseen = {
        " ".join(words(text))
        for split in ("val", "test")
        for row in read_texts(pack, "paraphrase", split)
        for text in row
    }
    closed = {place[0] for verses in (old, new) for place, text in verses.items() if " ".join(words(text)) in unseen}
    pairs = [
        (old[place], new[place])
        for place in old
        if place in new and place[0] not in closed and not guard.touches(old[place]) and not guard.touches(new[place])
    ]
    documents = [SEP.join(pair if rng.random() < 0.5 else pair[::-1]) for _ in range(2) for pair in pairs]
    single = [verse for verse in read_verses(places["web"], "ot").values() if not guard.touches(verse)]
    return documents + rng.sample(single, min(OLD_TESTAMENT, len(single)))


def _novels(places: dict[str, Path], pack: Path, guard: Guard, rng: random.Random) -> list[str]:
    """Four sentences a document, twice."""
    documents = []
    for novel in NOVELS:
        lines: list[str] = read_lazy(places["austen"], novel)
        sentences = [each for each in _sentences(lines) if not guard.touches(each)]
        documents += [" ".join(sentences[start : start + 4]) for start in range(0, len(sentences), 4)]
    return documents * 2


def _sentences(lines: Iterable[str]) -> list[str]:
    """The sentences of a book given by lines, without headings; paragraphs end at empty lines."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    running = (
        re.sub(r"\s+", " ", each).strip() for each in paragraphs if not re.match(r"\s*(CHAPTER|VOLUME)\b", each, re.I)
    )
    parts = (part for each in running for part in re.split(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])", each))
    return [part for part in parts if len(words(part)) > 1]


def _reviews(places: dict[str, Path], pack: Path, guard: Guard, rng: random.Random) -> list[str]:
    """The training sentences, four times."""
    return _clear((text for (text,) in read_texts(pack, "reviews", "train")), guard.touches) * 4


def _food(places: dict[str, Path], pack: Path, guard: Guard, rng: random.Random) -> list[str]:
    """Food reviews of products without a held-out review, three times."""
    rows = []
    for name in ("training_data", "testing_data"):
        columns, attributes = read_lazy(places["food"], name)
        table = dict(zip(attributes["names"], columns, strict=True))
        rows += list(zip(table["product"], map(_plain, table["review"]), strict=True))
    closed = {product for product, text in rows if guard.touches(text)}
    return _clear((text for product, text in rows if product not in closed), guard.touches) * 3


def _mails(places: dict[str, Path], pack: Path, guard: Guard, rng: random.Random) -> list[str]:
    """Mails and the training mails of the pack, twice; none with the subject of a held-out mail."""
    closed = {
        tuple(words(text.partition(" : ")[0]))
        for split in ("val", "test")
        for (text,) in read_texts(pack, "spam", split)
    }
    ours = [text for subject, text in read_mails(places["mails"]) if tuple(words(subject)) not in closed]
    packed = [text for (text,) in read_texts(pack, "spam", "train")]
    return _clear([*packed, *ours], guard.touches) * 2


def _clear(texts: Iterable[str], touches: Callable[[str], bool]) -> list[str]:
    """Those that touch nothing, one of each that begin alike."""
    kept: dict[str, str] = {}
    for text in texts:
        if not touches(text):
            kept.setdefault(" ".join(words(text))[:80], text)
    return list(kept.values())


def _plain(review: str) -> str:
    text = re.sub(r"<[^>]*>", " ", html.unescape(review))
    return cut(re.sub(r"\s+", " ", text).strip(), LONGEST_REVIEW)
