"""A user's own task, of pictures or texts: Parquet files, a folder of pictures sorted by class, or a hub data set."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.checking import check_labels, check_texts
from fusionlib.zoo.files import hash_listing
from fusionlib.zoo.locate import fetch_data, is_hub_id
from fusionlib.zoo.rows import hash_data, read_rows
from fusionlib.zoo.task import Split, Task

if TYPE_CHECKING:
    from datasets import Dataset

TEMPLATES = ("a photo of a {}.",)
_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_WORDS |= {"test": "test", "testing": "test"}
_PICTURES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}
_FOREIGN = {".heic", ".heif", ".svg", ".dng", ".cr2", ".nef", ".psd"}  # left out in silence they would be missing
_TEXTS = ("text", "text_a", "text_b")
_SEED = 0  # of the shuffle and of the part of train that becomes val


def own_task(name: str, path: str | PathLike[str]) -> Task:
    """A task from a Parquet file, a folder of Parquet files, an imagefolder (``split/class/picture``), or a hub id.

    Its columns are ``label`` and ``image``, ``text``, or ``text_a`` and ``text_b``.

    Splits are told by words in the names of files or folders: train, val (valid, validation, dev), test. One
    file without such a word is the test split. Where there is train but no val, a seeded tenth of train becomes
    val, and ``note`` says so. Every split is shuffled with a fixed seed, so that its first examples are a sample.

    Raises:
        CheckpointError: nothing is there, or no pictures or Parquet files, or files that can't be read.
        ParameterError: the test split or a column is missing, labels have no or differing class names or are no
            classes, texts are null or no texts; the sentence names the first such row.
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
        whole, dataset = _read(name, builder, paths, root)
        modality = _modality(name, split, dataset, whole)
        classes[split] = _classes(name, split, dataset, whole)
        _check_rows(name, split, dataset, whole, classes[split])
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(_SEED)).tolist()
        splits[split] = replace(whole, rows=tuple(rows))
    _check_same(name, classes)
    note = ""
    rows = splits["train"].rows or () if "train" in splits else ()
    if len(rows) > 1 and "val" not in splits:
        train, tenth = splits["train"], max(1, len(rows) // 10)
        splits["val"] = replace(train, rows=rows[:tenth])
        splits["train"] = replace(train, rows=rows[tenth:])
        note = f"val is a random tenth of train ({tenth} of {len(rows)} examples, seed {_SEED}), taken out of it"
    names = classes["test"]
    prompts = tuple(re.sub(r"[_-]+", " ", each) for each in names)
    templates = TEMPLATES if modality == "image" else ()
    return Task(name, names, splits, prompts, templates, modality=modality, note=note)


def _read(name: str, builder: str, paths: list[Path], root: Path) -> tuple[Split, Dataset]:
    """All rows of some files, as a split and as a data set; an error says which task they are of."""
    try:
        files, hashes = tuple(map(str, paths)), tuple(map(hash_data, paths))
        identity = hash_listing(dict(zip(paths, hashes, strict=True)), root)
        return Split(builder, files, identity, hashes=hashes), read_rows(builder, files, hashes)
    except (CheckpointError, ParameterError) as error:
        raise type(error)(f"the data of task {name!r}: {error}") from error


def _check_rows(name: str, split: str, dataset: Dataset, whole: Split, classes: tuple[str, ...]) -> None:
    """Refuse labels and texts that are none, naming the first such row."""
    what = f"the {split} split of task {name!r}"
    if not len(dataset):
        raise ParameterError(f"{what}, {_in(whole)}, is empty: it has no rows. Give it some, or take its file away.")
    check_labels(dataset.data.column("label"), classes, what, whole.place)
    columns = {column: dataset.data.column(column) for column in _TEXTS if column in dataset.features}
    check_texts(columns if "image" not in dataset.features else {}, what, whole.place)


def _in(whole: Split) -> str:
    return whole.files[0] if len(whole.files) == 1 else f"{whole.files[0]} and {len(whole.files) - 1} more"


def _locate(name: str, path: str | PathLike[str]) -> Path:
    try:
        if "\0" in str(path):
            raise ValueError("it has a null character")
        source = Path(path).expanduser().absolute()
        if source.exists():
            return source
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, NUL, unreadable
        shown = str(path) if len(str(path)) <= 120 else f"{str(path)[:60]}...{str(path)[-40:]}"
        raise CheckpointError(
            f"the data of task {name!r} should be in {shown!r}, which is no path that can be read ({error}). Check it."
        ) from error
    if source.is_symlink():
        raise CheckpointError(f"the data of task {name!r}, {source}, is a link to nothing. Mend or replace it.")
    if is_hub_id(path):
        return fetch_data(str(path), f"data of task {name!r}")
    raise CheckpointError(f"the data of task {name!r} should be in {source}, but nothing is there. Check the path.")


def _files(name: str, source: Path) -> tuple[str, dict[str, list[Path]]]:
    """(builder, split -> files) of a path."""
    if not source.is_dir():
        if source.suffix != ".parquet":
            raise CheckpointError(
                f"the data of task {name!r}, {source}, is no .parquet file and no folder. CSV and JSON files become "
                'one with datasets.load_dataset("csv", data_files=...)["train"].to_parquet(...), after giving '
                'the labels their names with .class_encode_column("label").'
            )
        return "parquet", {_split_of(source.stem) or "test": [source]}
    found = _below(name, source)
    files: dict[str, list[Path]] = {}
    for path in (path for path in found if path.suffix == ".parquet" and not path.is_dir()):
        split = _split_of(path.stem) or _split_of(path.parent.name if path.parent != source else "")
        if split is None:
            raise ParameterError(
                f"{path} of task {name!r} does not say which split it is: no train, val or test in its name."
            )
        files.setdefault(split, []).append(path)
    if files:
        return "parquet", files
    for path in (path for path in found if path.suffix.lower() in _PICTURES | _FOREIGN):
        folder = path.relative_to(source).parts[0]
        split = _split_of(folder) if path.parent != source else None
        if split:
            _check_picture(name, path, source / folder)
            files.setdefault(split, []).append(path)
    if not files:
        listed = ", ".join(path.name for path in sorted(source.iterdir())[:10]) or "nothing"
        raise CheckpointError(
            f"{source} of task {name!r} holds neither Parquet files nor folders train, val, test with pictures in one "
            f"folder per class. Found: {listed}."
        )
    return "imagefolder", files


def _below(name: str, source: Path) -> list[Path]:
    """All in a folder, linked folders too, but what is hidden, such as a Mac's ``._test.parquet``."""

    def refuse(error: OSError) -> None:
        raise CheckpointError(f"the folder {error.filename} of task {name!r} can't be read ({error.strerror}).")

    found = []
    for place, folders, files in os.walk(source, followlinks=True, onerror=refuse):
        here = Path(place)
        above = {os.path.realpath(each) for each in (here, *here.parents)}
        shown = [each for each in folders if not each.startswith((".", "__MACOSX"))]
        folders[:] = [each for each in shown if os.path.realpath(here / each) not in above]  # a link back up is a loop
        found += [here / each for each in (*folders, *files) if not each.startswith(".")]
    return sorted(found)


def _check_picture(name: str, path: Path, split: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"{path} of task {name!r} is a folder, though it is called like a picture. Rename it, or take it away."
        )
    if path.suffix.lower() in _FOREIGN:
        raise CheckpointError(
            f"{path} of task {name!r} is a kind of picture that can't be read here. Save it as PNG or JPEG."
        )
    if path.parent == split:
        raise ParameterError(
            f"{path} of task {name!r} lies in no folder of a class. Put the pictures of every class into a folder "
            f"that is called like it: {split.name}/cat/{path.name}."
        )


def _split_of(name: str) -> str | None:
    words = [_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS]
    return words[-1] if words else None


def _modality(name: str, split: str, dataset: Dataset, whole: Split) -> str:
    columns = dataset.features
    if "image" in columns:
        return "image"
    if "text" in columns or {"text_a", "text_b"} <= columns.keys():
        return "text"
    raise ParameterError(
        f"the {split} split of task {name!r}, {_in(whole)}, has no column 'image', no 'text', and not both of 'text_a' "
        f'and \'text_b\': found {", ".join(columns) or "none"}. Rename it with dataset.rename_column("...", "image").'
    )


def _classes(name: str, split: str, dataset: Dataset, whole: Split) -> tuple[str, ...]:
    from datasets import ClassLabel, Image

    columns, what = dataset.features, f"the {split} split of task {name!r}, {_in(whole)},"
    for column, kind in (("image", Image), ("label", ClassLabel)):
        if column == "label" and column not in columns:
            raise ParameterError(
                f"{what} has no column {column!r}: found {', '.join(columns)}. Rename it "
                f'with dataset.rename_column("...", "{column}").'
            )
        if column in columns and not isinstance(columns[column], kind):
            how = f'dataset.cast_column("{column}", datasets.{kind.__name__}(...))'
            if column == "label" and getattr(columns[column], "dtype", "") in ("string", "large_string", "bool"):
                how = 'dataset.class_encode_column("label")'
            raise ParameterError(
                f"column {column!r} of {what} is {columns[column]}, not {kind.__name__}. Cast it with {how} and save "
                "it again."
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
