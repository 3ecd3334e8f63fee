"""A task from a published data set: its splits, its columns, and the class names that its heads are made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from fusionlib.core import ParameterError
from fusionlib.zoo.files import hash_file
from fusionlib.zoo.hub.data_files import builder_of, wanted_data
from fusionlib.zoo.hub.table import DataSet
from fusionlib.zoo.task import Split, Task, read_dataset

_SEED = 0  # of the shuffle and of the part of train that becomes val
_SHA256 = re.compile(r"[0-9a-f]{64}")


def hub_task(data: DataSet, folder: Path) -> Task:
    """A task of a published data set.

    Its test split is the one that the published numbers are measured on; val is a seeded tenth of train, taken out
    of it. Every split is shuffled with a fixed seed, so that its first examples are a sample.

    Args:
        data: which.
        folder: the local copy of its repository.

    Raises: ParameterError, if a column is missing or its labels are not those that the table has; CheckpointError.
    """
    train, test = _split(data, folder, "train"), _split(data, folder, data.test)
    rows = train.rows or ()
    tenth = max(1, len(rows) // 10)
    splits = {
        "train": Split(train.builder, train.files, train.sha256, rows[tenth:], train.columns),
        "val": Split(train.builder, train.files, train.sha256, rows[:tenth], train.columns),
        "test": test,
    }
    note = f"val is a random tenth of train ({tenth} of {len(rows)} examples, seed {_SEED}), taken out of it"
    if data.test != "test":
        note += f"; test is the published {data.test} split"
    return Task(
        data.name, data.classes, splits, data.classes, data.templates, data.modality, note=note, metric=data.metric
    )


def _split(data: DataSet, folder: Path, split: str) -> Split:
    card = folder / "README.md"
    there = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = wanted_data(data.id, there, card if card.is_file() else None, data.config, split)
    paths = [folder / name for name in names]
    builder, files = builder_of(paths), tuple(map(str, paths))
    examples, columns = _schema(builder, files, data, split)
    rows = torch.randperm(examples, generator=torch.Generator().manual_seed(_SEED)).tolist()
    return Split(builder, files, _identity(paths), tuple(rows), columns)


def _schema(builder: str, files: tuple[str, ...], data: DataSet, split: str) -> tuple[int, tuple[tuple[str, str], ...]]:
    """(number of examples, columns); only the ends of Parquet files are read."""
    from datasets import ClassLabel, Features

    if builder == "parquet":
        from pyarrow.parquet import read_metadata, read_schema

        examples = sum(read_metadata(file).num_rows for file in files)
        features = Features.from_arrow_schema(read_schema(files[0]))
    else:
        dataset = read_dataset(builder, files)
        examples, features = len(dataset), dataset.features
    columns = []
    for ours, names in data.columns.items():
        found = next((name for name in names if name in features), None)
        if found is None:
            raise ParameterError(
                f"the {split} split of {data.id} has no column {' or '.join(map(repr, names))}, from which task "
                f"{data.name!r} takes its {ours}: found {', '.join(features)}. If the data set has changed, pin an "
                "older revision of it (owner/name@commit), or give its folder as your own task."
            )
        columns.append((ours, found))
    label = features[dict(columns)["label"]]
    if isinstance(label, ClassLabel) and data.classes and len(label.names) != len(data.classes):
        raise ParameterError(
            f"the labels of {data.id} have {len(label.names)} classes, and task {data.name!r} has "
            f"{len(data.classes)}: this is another data set, or another version of it. Pin a revision of it "
            "(owner/name@commit)."
        )
    return examples, tuple(columns)


def _identity(paths: Sequence[Path]) -> str:
    """One hash for the contents of several files.

    The cache of the hub calls large files by their SHA-256, which spares reading them; whether a file still is what
    its name says, ``fusionlib fetch`` checks.
    """
    import hashlib

    digest = hashlib.sha256()
    for path in paths:
        name = path.resolve().name
        digest.update(f"{name if _SHA256.fullmatch(name) else hash_file(path)}\n".encode())
    return digest.hexdigest()
