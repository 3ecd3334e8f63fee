"""Pictures with a truth for every pixel: how they are read, from the package's Parquet files or a user's folder."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fusionlib.zoo import nyuv2
from fusionlib.zoo.losses import UNKNOWN
from fusionlib.zoo.reading import Batch, Draw
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.rows import read_bytes
from fusionlib.zoo.task import Task

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as ResNets are used to
_NO_CLASS = 255  # in a stored picture of labels


@dataclass(frozen=True)
class Scenes:
    """What an encoder wants done to a picture, which is of the right size already, and the truth of each task.

    Truths: of metric "segmentation" int64 (B, H, W), -1 where there is no class; of "depth" float32 (B, 1, H, W),
    metres, 0 where unknown; of "normal" float32 (B, 3, H, W), unit vectors, 0 where unknown.

    Attributes:
        height: pixels.
        width: pixels.
        mean: per channel, on the scale [0, 1].
        std: per channel, on the scale [0, 1].
    """

    modality: ClassVar[str] = "scene"

    height: int
    width: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), uint8 or float in [0, 1], to float32 ``(x - mean) / std`` per channel."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (self.mean, self.std))
        return (values - mean) / std

    def batches(
        self, task: Task, split: str, limit: int | None, size: int, device: torch.device
    ) -> Iterator[tuple[Batch, Tensor]]:
        """({"pixel_values": float32 (B, 3, H, W)}, truths), in the split's order."""
        total = task.num_examples(split)
        total = total if limit is None else min(total, limit)
        for start in range(0, total, size):
            yield self.examples(task, split, range(start, min(start + size, total)), device)

    def examples(self, task: Task, split: str, indices: Sequence[int], device: torch.device) -> tuple[Batch, Tensor]:
        """Chosen examples as one batch, in the order of ``indices``."""
        images, truth = _read(task, split, list(indices))
        return {"pixel_values": self.normalise(images.to(device))}, truth.to(device)

    def drawing(self, tasks: Sequence[Task], recipe: Recipe, seed: int) -> Draw:
        """Epochs in which every picture comes once, cut into batches; they depend on the seed and the step alone."""
        sizes = [task.num_examples("train") for task in tasks]
        cpu = torch.device("cpu")

        def draw(step: int, generator: torch.Generator) -> tuple[Batch, list[Tensor]]:
            drawn = [
                self.examples(task, "train", _rows_of_step(size, recipe.batch_size, seed, step), cpu)
                for task, size in zip(tasks, sizes, strict=True)
            ]
            pixels = torch.cat([batch["pixel_values"] for batch, _ in drawn])
            return {"pixel_values": pixels}, [truth for _, truth in drawn]

        return draw


def _rows_of_step(total: int, size: int, seed: int, step: int) -> list[int]:
    """The rows of a step; what is left over at the end of an epoch is not used in it, for BatchNorm's sake."""
    per_epoch = max(1, total // size)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()
    return order[place * size : (place + 1) * size]


def _read(task: Task, split: str, rows: list[int]) -> tuple[Tensor, Tensor]:
    """(pictures, truths of the task) of some rows of a split."""
    source = task.split(split)
    if source.builder in (nyuv2.NPY, nyuv2.ARRAYS):
        return nyuv2.read_arrays(task, source, rows)
    columns = _columns(source.files, source.hashes)
    chosen = rows if source.rows is None else [source.rows[row] for row in rows]
    return columns["image"][chosen], columns[task.metric][chosen]


@functools.lru_cache(maxsize=8)
def _columns(files: tuple[str, ...], hashes: tuple[str, ...]) -> dict[str, Tensor]:
    """Everything in the package's files of a split, decoded: a few megabytes, which the tasks share."""
    from pyarrow import BufferReader
    from pyarrow.parquet import read_table

    found: dict[str, list[Tensor]] = {"image": [], "segmentation": [], "depth": [], "normal": []}
    for file, sha256 in zip(files, hashes, strict=True):
        table = read_table(BufferReader(read_bytes(file, sha256))).to_pydict()
        for image, label, depth, normal in zip(
            *(table[name] for name in ("image", "label", "depth", "normal")), strict=True
        ):
            far = _pixels(depth).float()[None] / 100  # stored in centimetres
            facing = torch.nn.functional.normalize(_pixels(normal).permute(2, 0, 1).float() / 127.5 - 1, dim=0)
            classes = _pixels(label).long()
            found["image"].append(_pixels(image).permute(2, 0, 1))
            found["segmentation"].append(torch.where(classes == _NO_CLASS, UNKNOWN, classes))
            found["depth"].append(far)
            found["normal"].append(facing * (far > 0))
    return {name: torch.stack(values) for name, values in found.items()}


def _pixels(stored: dict[str, Any]) -> Tensor:
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(stored["bytes"])) as image:
        values = np.array(image)
    return torch.from_numpy(values.astype(np.int32) if values.dtype == np.uint16 else values)
