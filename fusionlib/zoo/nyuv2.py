"""NYUv2 (Silberman et al. 2012) as prepared for multi-task learning by Liu et al. 2019: a folder, never a download.

Layout of the folder, one file of arrays per picture and number, in ``train`` (795) and ``val`` (654, the test set)::

    train/image/0.npy    float (288, 384, 3), in [0, 1]
    train/label/0.npy    (288, 384), classes 0 to 12, -1 for none
    train/depth/0.npy    float (288, 384, 1), metres, 0 for unknown
    train/normal/0.npy   float (288, 384, 3), unit vectors, 0 for unknown

or Parquet files ``train*.parquet`` and ``val*.parquet``, in the folder or in its ``data``, with columns ``image``
(3, 288, 384), ``segmentation`` (288, 384), ``depth`` (1, 288, 384) and ``normal`` (3, 288, 384).
"""

from __future__ import annotations

import functools
import io
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.files import hash_listing
from fusionlib.zoo.names import SCENE_TASKS
from fusionlib.zoo.rows import hash_data, parquet_schema, read_bytes
from fusionlib.zoo.task import Split, Task

SIZE = 288, 384  # pixels
CLASSES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
NPY, ARRAYS = "npy", "arrays"  # builders: a file per picture and kind of array, or Parquet files of arrays
_FOLDERS = ("image", "label", "depth", "normal")
_COLUMNS = ("image", "segmentation", "depth", "normal")
_SEED = 0  # of the pictures that are held out


def nyuv2_tasks(path: str | PathLike[str], *, validation: int = 0) -> tuple[Task, Task, Task]:
    """Segmentation, depth and surface normals of a prepared NYUv2.

    Args:
        path: the folder (see the module's text).
        validation: so many pictures, drawn at random, are taken out of train and become "val", for choosing
            hyper-parameters. 0 trains on all, as published; then there is no "val". "test" is the folder's val.
    Raises: CheckpointError, naming the file or folder that is missing; ParameterError, for ``validation``.
    """
    root = Path(path).expanduser().absolute()
    found = {"train": _split(root, "train"), "test": _split(root, "val")}
    total = found["train"][2]
    if not 0 <= validation < total:
        raise ParameterError(
            f"validation = {validation!r} must be 0 or greater and below the {total} training pictures."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(_SEED)).tolist()
    rows = {"train": tuple(order[validation:]), "test": tuple(range(found["test"][2]))}
    if validation:
        rows["val"], found["val"] = tuple(order[:validation]), found["train"]
    hashes = {files: tuple(map(hash_data, files)) for _, files, _ in set(found.values())}
    splits = {}
    for name, (builder, files, _) in found.items():
        identity = hash_listing(dict(zip(map(Path, files), hashes[files], strict=True)), root)
        splits[name] = Split(builder, files, identity, rows[name], hashes=hashes[files])
    note = f"val: {validation} of {total} training pictures, seed {_SEED}" if validation else ""
    one, two, three = (
        Task(name, CLASSES if name == "segmentation" else (), splits, (), (), "scene", note=note, metric=name)
        for name in SCENE_TASKS
    )
    return one, two, three


def read_arrays(task: Task, source: Split, rows: list[int]) -> tuple[Tensor, Tensor]:
    """(pictures, truths of the task) of some rows, as :class:`fusionlib.zoo.scenes.Scenes` describes them.

    Raises: CheckpointError, for arrays of another shape.
    """
    chosen = rows if source.rows is None else [source.rows[row] for row in rows]
    pairs = [_pair(task.metric, source, row) for row in chosen]
    return torch.stack([image for image, _ in pairs]), torch.stack([truth for _, truth in pairs])


def _split(root: Path, name: str) -> tuple[str, tuple[str, ...], int]:
    """(builder, files, pictures) of a split; of arrays in files of their own, the files of the pictures first."""
    tables = sorted(root.glob(f"{name}*.parquet")) or sorted((root / "data").glob(f"{name}*.parquet"))
    if tables:
        return ARRAYS, tuple(map(str, tables)), sum(parquet_schema(table)[0] for table in tables)
    kinds = [sorted((root / name / kind).glob("*.npy"), key=_number) for kind in _FOLDERS]
    if not kinds[0]:
        raise CheckpointError(
            f"NYUv2's {name} split should be in {root}: as {name}/image/0.npy and so on, or as {name}*.parquet. "
            f"Found neither; the folder {'holds ' + _listed(root) if root.is_dir() else 'is not there'}. Nothing is "
            "downloaded here: give the folder of the data set as prepared by Liu et al. 2019."
        )
    for kind, files in zip(_FOLDERS, kinds, strict=True):
        odd = {file.stem for file in files} ^ {file.stem for file in kinds[0]}
        if odd:
            raise CheckpointError(
                f"{root / name} has {len(kinds[0])} pictures and {len(files)} files in {kind}: "
                f"{', '.join(sorted(odd)[:5])} are in one of the two only. Copy the data set again."
            )
    return NPY, tuple(str(file) for files in kinds for file in files), len(kinds[0])


def _pair(metric: str, source: Split, row: int) -> tuple[Tensor, Tensor]:
    if source.builder == ARRAYS:
        image, truth = (_array(_tables(source.files, source.hashes)[column][row]) for column in ("image", metric))
        where = f"row {row} of {source.files[0]}"
        return _checked(image, "image", where), _checked(truth, metric, where)
    import numpy as np

    count = len(source.files) // len(_FOLDERS)
    found = []
    for column in ("image", metric):
        place = _COLUMNS.index(column) * count + row
        path = source.files[place]
        content = io.BytesIO(read_bytes(path, source.hashes[place]))
        try:
            array = np.load(content, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise CheckpointError(f"{path} holds no array that can be read ({error}). Copy it again.") from error
        found.append(_checked(np.moveaxis(array, -1, 0) if array.ndim == 3 else array, column, path))
    return found[0], found[1]


def _array(cell: Any) -> Any:
    """A cell of nested lists as a numpy array, without a Python object per number."""
    from pyarrow.types import is_nested

    values, shape = cell.values, []
    while is_nested(values.type):
        shape.append(len(values))
        values = values.flatten()
    outer = 1
    sizes = []
    for length in (*shape, len(values)):
        sizes.append(length // max(1, outer))
        outer = length
    return values.to_numpy().reshape(sizes)


def _checked(values: Any, column: str, where: str) -> Tensor:
    """An array as the tensor of its column, channels first."""
    import numpy as np

    tensor = torch.from_numpy(np.array(values, dtype=np.float32))
    channels = {"image": 3, "segmentation": None, "depth": 1, "normal": 3}[column]
    wanted = SIZE if channels is None else (channels, *SIZE)
    if tuple(tensor.shape) != wanted:
        raise CheckpointError(
            f"{where} holds an array of shape {tuple(tensor.shape)} for {column}; needed, channels first, is {wanted}. "
            "Only the data set as prepared by Liu et al. 2019 can be read."
        )
    return tensor.long() if column == "segmentation" else tensor


@functools.lru_cache(maxsize=4)
def _tables(files: tuple[str, ...], hashes: tuple[str, ...]) -> Any:
    from pyarrow import ArrowException, BufferReader, concat_tables
    from pyarrow.parquet import read_table

    found = []
    for file, sha256 in zip(files, hashes, strict=True):
        try:
            found.append(read_table(BufferReader(read_bytes(file, sha256)), columns=list(_COLUMNS)))
        except (ArrowException, OSError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} can't be read ({error}). Copy it again.") from error
    return concat_tables(found)


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdigit() else (-1, path.stem)


def _listed(root: Path) -> str:
    return ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
