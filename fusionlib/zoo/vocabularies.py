"""Whether two models read the same tokens: rows of an embedding with the same number must mean the same word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionlib.zoo.files import hash_file

_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")


def differing(pretrained: Path, finetuned: Path) -> str:
    """How the vocabulary of a fine-tune differs, as the end of a sentence; empty if it does not, or has none."""
    one, other = _vocabulary(pretrained), _vocabulary(finetuned)
    if one and other:
        moved = sorted(word for word in one.keys() & other.keys() if one[word] != other[word])
        added = sorted(other.keys() - one.keys(), key=other.__getitem__)
        gone = one.keys() - other.keys()
        parts = [
            f"{len(moved)} tokens have another number (such as {moved[0]!r}: {one[moved[0]]}, {other[moved[0]]})"
            if moved
            else "",
            f"{len(added)} are not in the pretrained one (such as {added[0]!r})" if added else "",
            f"{len(gone)} of the pretrained one are not there" if gone else "",
        ]
        return ", ".join(part for part in parts if part)
    pieces = [name for name in _PIECES if (pretrained / name).is_file() and (finetuned / name).is_file()]
    if any(hash_file(pretrained / name) != hash_file(finetuned / name) for name in pieces):
        return f"{pieces[0]} is another file"
    return ""


def _vocabulary(folder: Path) -> dict[str, int]:
    """Token -> number, from whichever file of a tokenizer is there; empty if there is none that can be read."""
    whole = _json(folder / "tokenizer.json")
    if isinstance(whole, Mapping) and isinstance(whole.get("model"), Mapping):
        found = _numbered(whole["model"].get("vocab"))
        listed = whole.get("added_tokens")
        for token in listed if isinstance(listed, list) else ():
            if isinstance(token, Mapping) and isinstance(token.get("content"), str):
                found |= _numbered({token["content"]: token.get("id")})
        return found
    found = _numbered(_json(folder / "vocab.json"))
    if not found:
        try:
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        found = {word: number for number, word in enumerate(lines)}
    return found | _numbered(_json(folder / "added_tokens.json"))


def _numbered(vocabulary: Any) -> dict[str, int]:
    if isinstance(vocabulary, Mapping):
        return {word: number for word, number in vocabulary.items() if isinstance(number, int)}
    if isinstance(vocabulary, list):  # of unigram models: token and score, the place is the number
        return {
            entry[0]: number
            for number, entry in enumerate(vocabulary)
            if isinstance(entry, list) and entry and isinstance(entry[0], str)
        }
    return {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
