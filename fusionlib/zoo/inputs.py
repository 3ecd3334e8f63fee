"""Pictures to tensors, decoded once: a cache of uint8 pixels in memory and on disk, normalised batch by batch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fusionlib.core import CheckpointError
from fusionlib.zoo.checking import check_labels
from fusionlib.zoo.files import check_writable, file_name, home
from fusionlib.zoo.kept import keep, read_kept
from fusionlib.zoo.pictures import LARGEST, stored_picture
from fusionlib.zoo.reading import Batch, Draw
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.task import Task

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = 1024  # pictures per cache file: asking for the first few of a large split must not decode all of it
MEMORY = 1 << 30  # bytes of pixels kept per process
_FORMAT = 2  # raised when the same picture gives other pixels, or a file of them is another
_kept: OrderedDict[tuple[str, int], tuple[Tensor, Tensor]] = OrderedDict()


@dataclass(frozen=True)
class Preprocess:
    """What a backbone wants done to a picture: resize, crop to ``height`` x ``width``, normalise.

    Attributes:
        height: pixels, after cropping.
        width: pixels, after cropping.
        shortest_edge: resize so that the shorter side has this many pixels; None resizes both sides.
        resample: PIL's number of the interpolation (3 is bicubic).
        mean: per channel, on the scale [0, 1].
        std: per channel, on the scale [0, 1].
    """

    modality: ClassVar[str] = "image"

    height: int
    width: int
    shortest_edge: int | None
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def cache_key(self) -> tuple:
        """What decides the uint8 pixels of a picture."""
        return self.height, self.width, self.shortest_edge, self.resample

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture of this size is brought to before it is cropped."""
        if self.shortest_edge is None:
            return self.width, self.height
        long = int(self.shortest_edge * max(width, height) / min(width, height))
        return (self.shortest_edge, long) if width <= height else (long, self.shortest_edge)

    def pixels(self, image: Image) -> Tensor:
        """One picture of any mode and size as uint8, shape (3, height, width)."""
        import numpy as np

        image = image.convert("RGB")
        size = self.resized(image.width, image.height)
        if image.size != size:
            image = image.resize(size, self.resample)
        if image.size != (self.width, self.height):
            left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
            image = image.crop((left, top, left + self.width, top + self.height))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, height, width) to float32, ``(x / 255 - mean) / std`` per channel, on the same device."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def batches(
        self, task: Task, split: str, limit: int | None, size: int, device: torch.device
    ) -> Iterator[tuple[Batch, Tensor]]:
        """({"pixel_values": float32 (B, 3, height, width)}, int64 labels (B,)), in the split's order."""
        for images, labels in pixels(task, split, self, limit):
            for part, answers in zip(images.split(size), labels.split(size), strict=True):
                yield {"pixel_values": self.normalise(part.to(device))}, answers.to(device)

    def examples(self, task: Task, split: str, indices: Sequence[int], device: torch.device) -> tuple[Batch, Tensor]:
        """Chosen examples as one batch, in the order of ``indices``."""
        images, labels = examples(task, split, self, indices)
        return {"pixel_values": self.normalise(images.to(device))}, labels.to(device)

    def drawing(self, tasks: Sequence[Task], recipe: Recipe, seed: int) -> Draw:
        """Batches drawn with replacement, from the generator alone."""
        data = [_training(task, self) for task in tasks]

        def draw(step: int, generator: torch.Generator) -> tuple[Batch, list[Tensor]]:
            rows = [torch.randint(total, (recipe.batch_size,), generator=generator) for total, _ in data]
            drawn = [take(chosen) for (_, take), chosen in zip(data, rows, strict=True)]
            batch = torch.cat([images for images, _ in drawn])
            return {"pixel_values": self.normalise(batch)}, [labels for _, labels in drawn]

        return draw


def pixels(task: Task, split: str, preprocess: Preprocess, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of (uint8 pictures (n, 3, H, W), int64 labels (n,)) in the split's order, the first ``limit`` in all."""
    total = task.num_examples(split)
    total = total if limit is None else min(total, limit)
    key = _key(task, split, preprocess)
    for start in range(0, total, CHUNK):
        images, labels = _chunk(task, split, preprocess, key, start // CHUNK)
        yield images[: total - start], labels[: total - start]


def examples(task: Task, split: str, preprocess: Preprocess, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Chosen examples in the order of ``indices``: uint8 pictures (n, 3, H, W), int64 labels (n,)."""
    total, key = task.num_examples(split), _key(task, split, preprocess)
    images, labels = [], []
    for index in indices:
        if not 0 <= index < total:
            raise IndexError(f"the {split} split of task {task.name!r} has no example {index}, only 0 to {total - 1}.")
        some_images, some_labels = _chunk(task, split, preprocess, key, index // CHUNK)
        images.append(some_images[index % CHUNK])
        labels.append(some_labels[index % CHUNK])
    return torch.stack(images), torch.stack(labels)


def _training(task: Task, preprocess: Preprocess) -> tuple[int, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """(number of training examples, rows -> pictures and labels): from memory, or decoded when drawn if too many."""
    total = task.num_examples("train")
    if total * 3 * preprocess.height * preprocess.width > MEMORY:
        stored = _Stored.of(task, "train")
        return total, lambda rows: _pictures(stored, preprocess, rows.tolist())
    images, labels = (torch.cat(parts) for parts in zip(*pixels(task, "train", preprocess), strict=True))
    return total, lambda rows: (images[rows], labels[rows])


def _key(task: Task, split: str, preprocess: Preprocess) -> str:
    source = task.split(split)
    described = repr((_FORMAT, CHUNK, source.sha256, source.rows, preprocess.cache_key))
    return hashlib.sha256(described.encode()).hexdigest()[:24]


def _chunk(task: Task, split: str, preprocess: Preprocess, key: str, index: int) -> tuple[Tensor, Tensor]:
    if (key, index) in _kept:
        _kept.move_to_end((key, index))
        return _kept[key, index]
    path = home() / "cache" / "inputs" / f"{file_name(task.name)}-{split}-{key}-{index}.safetensors"
    tensors = read_kept(path, "cached pictures")
    if tensors is None:
        check_writable(path.parent)
        tensors = _decode(task, split, preprocess, index)
        keep(path, tensors)
    _kept[key, index] = tensors["pixels"], tensors["labels"]
    while len(_kept) > 1 and sum(images.nbytes for images, _ in _kept.values()) > MEMORY:
        _kept.popitem(last=False)
    return tensors["pixels"], tensors["labels"]


def _decode(task: Task, split: str, preprocess: Preprocess, index: int) -> dict[str, Tensor]:
    rows = range(index * CHUNK, min(task.num_examples(split), (index + 1) * CHUNK))
    images, labels = _pictures(_Stored.of(task, split), preprocess, rows)
    return {"pixels": images, "labels": labels}


class _Stored(NamedTuple):
    """A split whose pictures are not decoded yet."""

    task: Task
    split: str
    dataset: Any
    mode: str | None

    @classmethod
    def of(cls, task: Task, split: str) -> _Stored:
        from datasets import Image

        dataset = task.dataset(split)
        mode = getattr(dataset.features["image"], "mode", None)
        return cls(task, split, dataset.cast_column("image", Image(decode=False)), mode)


def _pictures(stored: _Stored, preprocess: Preprocess, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """uint8 pictures (n, 3, H, W) and int64 labels (n,) of some examples."""
    task, source, chosen = stored.task, stored.task.split(stored.split), stored.dataset.select(rows)
    what, labels = f"the {stored.split} split of task {task.name!r}", list(chosen["label"])
    check_labels(labels, task.classes, what, lambda at: source.place(rows[at]))
    images = []
    for row, cell in zip(rows, chosen["image"], strict=True):
        image = stored_picture(source, row, cell, task.name, stored.mode)
        width, height = preprocess.resized(*image.size)
        if width * height > LARGEST:
            raise CheckpointError(
                f"{source.place(row)} of task {task.name!r} is a picture of {image.width} x {image.height} pixels: "
                "brought to the size that the model wants, it would be too long. Cut it, or leave it out."
            )
        images.append(preprocess.pixels(image))
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)
