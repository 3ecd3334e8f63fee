"""A task from a published data set: its splits, its columns, and the class names that its heads are made from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import torch

from fusionlib.core import ParameterError
from fusionlib.zoo.hub.data_files import builder_of, wanted_data
from fusionlib.zoo.hub.table import DataSet
from fusionlib.zoo.rows import hash_data, parquet_schema, read_rows
from fusionlib.zoo.task import Split, Task

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
        "train": replace(train, rows=rows[tenth:]),
        "val": replace(train, rows=rows[:tenth]),
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
    hashes = tuple(_hash(path) for path in paths)
    identity = hashlib.sha256("".join(f"{sha256}\n" for sha256 in hashes).encode()).hexdigest()
    examples, columns = _schema(builder, files, hashes, data, split)
    rows = torch.randperm(examples, generator=torch.Generator().manual_seed(_SEED)).tolist()
    return Split(builder, files, identity, tuple(rows), columns, hashes=hashes)


def _schema(
    builder: str, files: tuple[str, ...], hashes: tuple[str, ...], data: DataSet, split: str
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """(number of examples, columns); only the ends of Parquet files are read."""
    from datasets import ClassLabel, Features

    if builder == "parquet":
        ends = [parquet_schema(file) for file in files]
        examples, features = sum(rows for rows, _ in ends), Features.from_arrow_schema(ends[0][1])
    else:
        dataset = read_rows(builder, files, hashes)
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


def _hash(path: Path) -> str:
    """SHA-256 of a file.

    The cache of the hub calls large files by it, which spares reading them here. A file that is not what its name
    says is noticed when its rows are read, and by ``fusionlib fetch``.
    """
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else hash_data(path)
