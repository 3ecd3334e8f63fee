"""A user's own task, of pictures or texts: Parquet files, a folder of pictures sorted by class, or a hub data set."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.files import hash_files
from fusionlib.zoo.locate import fetch_data, is_hub_id
from fusionlib.zoo.task import Split, Task, read_dataset

if TYPE_CHECKING:
    from datasets import Dataset

TEMPLATES = ("a photo of a {}.",)
_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_WORDS |= {"test": "test", "testing": "test"}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_SEED = 0  # of the shuffle and of the part of train that becomes val


def own_task(name: str, path: str | PathLike[str]) -> Task:
    """A task from a Parquet file, a folder of Parquet files, an imagefolder (``split/class/picture``), or a hub id.

    Its columns are ``label`` and ``image``, ``text``, or ``text_a`` and ``text_b``.

    Splits are told by words in the names of files or folders: train, val (valid, validation, dev), test. One
    file without such a word is the test split. Where there is train but no val, a seeded tenth of train becomes
    val, and ``note`` says so. Every split is shuffled with a fixed seed, so that its first examples are a sample.

    Raises:
        CheckpointError: nothing is there, or no pictures or Parquet files.
        ParameterError: the test split or a column is missing, or labels have no or differing class names.
    """
    source = _locate(name, path)
    builder, files = _files(name, source)
    if "test" not in files:
        raise ParameterError(
            f"task {name!r} has no test split in {source}: found {', '.join(files) or 'no split'}. Name its files or "
            "folders train, val and test."
        )
    root = source if source.is_dir() else source.parent
    splits: dict[str, Split] = {}
    classes: dict[str, tuple[str, ...]] = {}
    modality = "image"
    for split in (split for split in ("train", "val", "test") if split in files):
        paths = sorted(files[split])
        dataset = read_dataset(builder, tuple(map(str, paths)))
        modality = _modality(name, split, dataset)
        classes[split] = _classes(name, split, dataset)
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(_SEED)).tolist()
        splits[split] = Split(builder, tuple(map(str, paths)), hash_files(paths, root), tuple(rows))
    _check_same(name, classes)
    note = ""
    if "train" in splits and "val" not in splits:
        train, tenth = splits["train"], max(1, len(splits["train"].rows or ()) // 10)
        rows = train.rows or ()
        splits["val"] = Split(builder, train.files, train.sha256, rows[:tenth])
        splits["train"] = Split(builder, train.files, train.sha256, rows[tenth:])
        note = f"val is a random tenth of train ({tenth} of {len(rows)} examples, seed {_SEED}), taken out of it"
    names = classes["test"]
    prompts = tuple(re.sub(r"[_-]+", " ", each) for each in names)
    templates = TEMPLATES if modality == "image" else ()
    return Task(name, names, splits, prompts, templates, modality=modality, note=note)


def _locate(name: str, path: str | PathLike[str]) -> Path:
    source = Path(path).expanduser().absolute()
    if source.exists():
        return source
    if is_hub_id(path):
        return fetch_data(str(path), f"data of task {name!r}")
    raise CheckpointError(f"the data of task {name!r} should be in {source}, but nothing is there. Check the path.")


def _files(name: str, source: Path) -> tuple[str, dict[str, list[Path]]]:
    """(builder, split -> files) of a path."""
    if source.is_file():
        if source.suffix != ".parquet":
            raise CheckpointError(f"the data of task {name!r}, {source}, is no .parquet file and no folder.")
        return "parquet", {_split_of(source.stem) or "test": [source]}
    files: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.parquet")):
        split = _split_of(path.stem) or _split_of(path.parent.name if path.parent != source else "")
        if split is None:
            raise ParameterError(
                f"{path} of task {name!r} does not say which split it is: no train, val or test in its name."
            )
        files.setdefault(split, []).append(path)
    if files:
        return "parquet", files
    found = sorted(path for path in source.iterdir() if path.is_dir())
    for folder in found:
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)
        if pictures and (split := _split_of(folder.name)):
            files[split] = pictures
    if not files:
        listed = ", ".join(path.name for path in sorted(source.iterdir())[:10]) or "nothing"
        raise CheckpointError(
            f"{source} of task {name!r} holds neither Parquet files nor folders train, val, test with pictures in one "
            f"folder per class. Found: {listed}."
        )
    return "imagefolder", files


def _split_of(name: str) -> str | None:
    words = [_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS]
    return words[-1] if words else None


def _modality(name: str, split: str, dataset: Dataset) -> str:
    columns = dataset.features
    if "image" in columns:
        return "image"
    if "text" in columns or {"text_a", "text_b"} <= columns.keys():
        return "text"
    raise ParameterError(
        f"the {split} split of task {name!r} has no column 'image', no 'text', and not both of 'text_a' and 'text_b': "
        f'found {", ".join(columns)}. Rename it with dataset.rename_column("...", "image").'
    )


def _classes(name: str, split: str, dataset: Dataset) -> tuple[str, ...]:
    from datasets import ClassLabel, Image

    columns = dataset.features
    for column, kind in (("image", Image), ("label", ClassLabel)):
        if column == "label" and column not in columns:
            raise ParameterError(
                f"the {split} split of task {name!r} has no column {column!r}: found {', '.join(columns)}. Rename it "
                f'with dataset.rename_column("...", "{column}").'
            )
        if column in columns and not isinstance(columns[column], kind):
            raise ParameterError(
                f"column {column!r} of the {split} split of task {name!r} is {columns[column]}, not {kind.__name__}. "
                f'Cast it with dataset.cast_column("{column}", datasets.{kind.__name__}(...)) and save it again.'
            )
    return tuple(columns["label"].names)


def _check_same(name: str, classes: dict[str, tuple[str, ...]]) -> None:
    for split, found in classes.items():
        if found != classes["test"]:
            differ = sorted(set(found) ^ set(classes["test"])) or ["their order"]
            raise ParameterError(
                f"the classes of task {name!r} differ between {split} and test ({', '.join(differ)}). Every split must "
                "have the same classes."
            )
