"""A task: its class names, and its splits as ``datasets`` reads them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fusionlib.core import CheckpointError, ParameterError, suggest
from fusionlib.zoo.files import DATA, SCENES, TEXT, hash_file
from fusionlib.zoo.names import SCENE_TASKS, TEXT_TASKS
from fusionlib.zoo.rows import parquet_schema, place, read_rows

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Files of one split.

    Attributes:
        builder: what reads them, "parquet", "imagefolder" or "webdataset".
        files: absolute paths.
        sha256: hash of the files' contents.
        rows: the rows that belong to this split, in order; None means all, in the files' order.
        columns: (ours, name in the files) of the columns that are used; empty if the files have our names.
        hashes: the SHA-256 of each file; what is read later must have it.
    """

    builder: str
    files: tuple[str, ...]
    sha256: str
    rows: tuple[int, ...] | None = field(default=None, repr=False)
    columns: tuple[tuple[str, str], ...] = ()
    hashes: tuple[str, ...] = field(kw_only=True, repr=False)

    def place(self, index: int) -> str:
        """Where an example of the split is, for messages: a file, and a row in it, counted from 0."""
        return place(self.builder, self.files, index if self.rows is None else self.rows[index])


@dataclass(frozen=True)
class Task:
    """One task: inputs, and what is to be said of each.

    Attributes:
        name: what it is called in tables.
        classes: class names, in the order of the labels; none for depth and surface normals.
        splits: split name -> files; "test" is always there, "train" and "val" where the source has them.
        prompts: class names as written in prompts, where they differ from ``classes``.
        templates: prompts with one ``{}`` for the class name; tasks of texts have none.
        modality: of its examples, "image", "text", or "scene" for a picture with a truth for every pixel.
        embedded: whether it is one of the tasks that ship with the package.
        note: what was decided about the splits, empty if nothing had to be.
        metric: what is counted, a name in ``fusionlib.bench.meters.METERS``.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split] = field(repr=False)
    prompts: tuple[str, ...] = field(repr=False)
    templates: tuple[str, ...] = field(repr=False)
    modality: str = "image"
    embedded: bool = False
    note: str = ""
    metric: str = "accuracy"

    def split(self, name: str) -> Split:
        """Files of this split; ParameterError, saying which splits there are, if it has none."""
        if name not in self.splits:
            raise ParameterError(f"task {self.name!r} has no split {name!r}.{suggest(str(name), self.splits)}")
        return self.splits[name]

    def dataset(self, split: str) -> Dataset:
        """The examples as a ``datasets.Dataset``: ``image`` (decoded by PIL), ``text``, or ``text_a`` and ``text_b``;
        and ``label``.

        Raises: ParameterError; CheckpointError, if a file is not what it was when the task was made.
        """
        source = self.split(split)
        dataset = read_rows(source.builder, source.files, source.hashes)
        if source.columns:
            dataset = dataset.select_columns([theirs for _, theirs in source.columns])
            renamed = {theirs: ours for ours, theirs in source.columns if ours != theirs}
            dataset = dataset.rename_columns(renamed) if renamed else dataset
        return dataset if source.rows is None else dataset.select(source.rows)

    def num_examples(self, split: str) -> int:
        """Number of examples of a split."""
        source = self.split(split)
        if source.rows is not None:
            return len(source.rows)
        if source.builder == "parquet":
            return sum(parquet_schema(file)[0] for file in source.files)
        return len(read_rows(source.builder, source.files, source.hashes))


@functools.lru_cache(maxsize=32)
def embedded_task(name: str) -> Task:
    """One of the tasks in ``fusionlib/zoo/data``."""
    folder = SCENES if name in SCENE_TASKS else TEXT if name in TEXT_TASKS else DATA
    source = "scenes" if folder == SCENES else name  # tasks of scenes share their pictures
    splits = {}
    for split in SPLITS:
        path = folder / f"{source}-{split}.parquet"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the installation is incomplete, install fusionlib again.")
        sha256 = hash_file(path)
        splits[split] = Split("parquet", (str(path),), sha256, hashes=(sha256,))
    if folder == TEXT:
        classes = _classes(Path(splits["train"].files[0]))
        return Task(name, classes, splits, prompts=classes, templates=(), modality="text", embedded=True)
    if folder == SCENES:
        facts = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))
        classes = tuple(facts["classes"]) if name == "segmentation" else ()
        return Task(name, classes, splits, classes, (), modality="scene", embedded=True, metric=name)
    facts = json.loads(_head_metadata()[name])
    return Task(
        name=name,
        classes=tuple(facts["classes"]),
        splits=splits,
        prompts=tuple(facts["prompt_names"]),
        templates=tuple(facts["templates"]),
        embedded=True,
    )


def _classes(path: Path) -> tuple[str, ...]:
    """The class names that a Parquet file carries."""
    from datasets import Features
    from pyarrow.parquet import read_schema

    return tuple(Features.from_arrow_schema(read_schema(path))["label"].names)


@functools.cache
def _head_metadata() -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(DATA / "heads.safetensors", "pt") as file:
        return dict(file.metadata())
