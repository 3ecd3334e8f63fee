"""A task: its class names, and its splits as ``datasets`` reads them."""

from __future__ import annotations

import functools
import glob
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fusionlib.core import CheckpointError, ParameterError, suggest
from fusionlib.zoo.files import DATA, SCENES, TEXT, hash_file, home
from fusionlib.zoo.names import SCENE_TASKS, TEXT_TASKS

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
    """

    builder: str
    files: tuple[str, ...]
    sha256: str
    rows: tuple[int, ...] | None = field(default=None, repr=False)
    columns: tuple[tuple[str, str], ...] = ()


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
        """
        source = self.split(split)
        dataset = read_dataset(source.builder, source.files)
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
            from pyarrow.parquet import read_metadata

            return sum(read_metadata(file).num_rows for file in source.files)
        return len(read_dataset(source.builder, source.files))


@functools.lru_cache(maxsize=64)
def read_dataset(builder: str, files: tuple[str, ...]) -> Dataset:
    """Local files as a dataset; nothing is asked of the network.

    Args:
        builder: "parquet" or "webdataset" (tar files), whose Arrow copies live under ``home()/cache``; or
            "imagefolder", whose labels are the names of the pictures' folders, sorted.
        files: absolute paths.
    """
    from datasets import ClassLabel, Dataset, Features, Image
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    if builder == "imagefolder":
        folders = [Path(file).parent.name for file in files]
        features = Features({"image": Image(), "label": ClassLabel(names=sorted(set(folders)))})
        return Dataset.from_dict({"image": list(files), "label": folders}, features=features)
    # what load_dataset("parquet") reads with; load_dataset itself would report to the hub that it was called
    patterns: Any = {"data": [glob.escape(file) for file in files]}
    kind = {"parquet": Parquet, "webdataset": WebDataset}[builder]
    reader = kind(cache_dir=str(home() / "cache" / "datasets"), data_files=patterns, hash="local")
    with _quiet():
        reader.download_and_prepare()
        return cast("Dataset", reader.as_dataset(split="data"))


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
        splits[split] = Split("parquet", (str(path),), hash_file(path))
    if folder == TEXT:
        classes = _classes(Path(splits["train"].files[0]))
        return Task(name, classes, splits, prompts=classes, templates=(), modality="text", embedded=True)
    if folder == SCENES:
        classes = (
            tuple(json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))["classes"])
            if name == "segmentation"
            else ()
        )
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of ``datasets``, which flash by for small files; the user's choice comes back."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bar()
