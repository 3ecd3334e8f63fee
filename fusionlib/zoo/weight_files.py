"""Which files of a folder are the weights: the choice of transformers, indices of shards, and headers; no tensors."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from fusionlib.core import CheckpointError

# in the order in which transformers looks for them
_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(folder: Path) -> list[Path]:
    """The file, or index of shards, that transformers would read, then others that are there too.

    Raises: CheckpointError, saying what is there instead, if there is none.
    """
    names = dict.fromkeys((*_named(folder), *_FILES))
    there = [folder / name for name in names if (folder / name).is_file()]
    if not there:
        raise CheckpointError(f"{folder} holds no weights{_instead(folder)}")
    return there


def shards_of(index: Path) -> dict[str, str]:
    """Tensor -> file, as an index of shards says."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error!r}). Copy or make it again.") from error
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(
            f"{index} is not an index of shards: its weight_map must say for every tensor which file it is in. Copy or "
            "make it again."
        )
    return places


def inside(index: Path, name: str) -> Path:
    """The file that an index names, which must lie in the folder of the index, so that none is read that is private.

    The hub's cache holds links to its own folder of blobs; a whole folder may be linked, the index with the shards.
    """
    parts = name.replace("\\", "/").split("/")
    path = index.parent / name
    if not name or "\0" in name or any(part in ("", "..") or ":" in part for part in parts):
        raise CheckpointError(
            f"{index} names {shown(name)}, which does not lie in its own folder, so it is not read. Copy the "
            "shards there."
        )
    try:
        real, there = path.resolve(), path.is_file()
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        real, there = path, False
    if not there:
        short = name if len(name) < 200 else f"{name[:60]}..."
        raise CheckpointError(f"{index.parent / short} is missing, which {index.name} names. Copy it there.")
    roots = [index.parent.resolve(), index.resolve().parent]
    if index.parent.parent.name == "snapshots":
        roots.append((index.parent.parent.parent / "blobs").resolve())
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{index} names {shown(name)}, a link to a file outside of its own folder, so it is not read. Copy the "
            "shards there."
        )
    return path


def check_header(path: Path) -> None:
    """Refuse a file whose header lists a name twice: its own reader takes the last of them without a word."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        pairs = json.loads(file.read(length), object_pairs_hook=lambda found: found)
    names = Counter(name for name, _ in pairs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{path} is damaged: its header lists {some(twice)} more than once, so it is not known which tensor is "
            "meant. Copy or make it again."
        )


def some(names: list[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shown(text: str) -> str:
    """Text of a file in a message, cut if it is long."""
    return repr(text if len(text) < 200 else f"{text[:60]}...")


def _instead(folder: Path) -> str:
    """What a folder without weights holds, and which of it weights in another format or variant are."""
    names = sorted(path.name for path in folder.iterdir())
    variants = [name for name in names if re.fullmatch(r"(model|pytorch_model)\.[\w-]+\.(safetensors|bin)", name)]
    if variants:
        return (
            f" under the usual name ({_FILES[0]}), only of a variant: {some(variants)}. Rename what shall be read, or "
            "load it with variant= and save it again."
        )
    foreign = [name for name in names if name.endswith((".gguf", ".h5", ".msgpack", ".onnx", ".ckpt.index", ".pt"))]
    if any(name.endswith(".gguf") for name in foreign):
        return f", but {some(foreign)}: GGUF files are quantised for inference. Merge before quantising."
    if foreign:
        return f" that can be read, but {some(foreign)}. Load the model with the framework that wrote it."
    found = some(names) or "nothing"
    return f": one of {', '.join(_FILES)} is needed, found: {found}. Save the model with save_pretrained."


def _named(folder: Path) -> tuple[str, ...]:
    """The file of weights that a configuration names, which transformers then reads before any other."""
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()  # what reads the configuration for its own sake complains
    named = facts.get("transformers_weights") if isinstance(facts, dict) else None
    if named is None:
        return ()
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{folder / 'config.json'} has transformers_weights: {named!r}, which is not a name of a safetensors file. "
            "Take the line out, or save the model again."
        )
    inside(folder / "config.json", named)
    return (named,)
