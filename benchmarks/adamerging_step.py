"""What one step of AdaMerging costs, against a plain forward and backward pass over the same batches.

A step looks at one batch of each of T tasks, as the plain passes do, and besides reads all T task vectors twice:
for the gradient of the coefficients, and for the new weights. How much that adds depends on how much
computing the batches are, so a large model is shown few images. Random CLIP towers; medians of several
rounds, in turn. Seconds of the processor are printed too, because they hardly feel other programs.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fusionlib.bench.measure import Measured
from fusionlib.ops.adapting import minimise_entropy, step
from fusionlib.ops.blending import Blend
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.entropy import mean_entropy
from fusionlib.ops.modules import Batch

M_MMAP_THRESHOLD = -3  # of mallopt, in malloc.h

Made: TypeAlias = tuple[nn.Module, list[nn.Module], CalibrationData, list[Batch]]

# width, layers, heads, pixels, patch, images per task
SIZES = {"tiny-clip": (128, 4, 4, 32, 8, 16), "ViT-B/32": (768, 12, 12, 224, 32, 2)}


def towers(size: tuple[int, ...], num_models: int) -> tuple[nn.Module, list[nn.Module]]:
    """A random vision tower, and others near it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width, layers, heads, pixels, patch, _ = size
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=pixels,
        patch_size=patch,
        projection_dim=512,
    )
    torch.manual_seed(0)
    base = CLIPVisionModelWithProjection(config).eval()
    members = []
    for _ in range(num_models):
        member = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        members.append(member)
    return base, members


def random_data(size: tuple[int, ...], num_tasks: int) -> CalibrationData:
    """One batch of noise per task, and a random head of ten classes."""
    pixels, count = size[3], size[5]
    images = torch.randn(count, 3, pixels, pixels)
    names = tuple(f"task {index}" for index in range(num_tasks))
    weights = {name: torch.randn(512, 10) for name in names}

    def head(weight: Tensor) -> Callable[[Tensor, Batch], Tensor]:
        return lambda features, batch: features @ weight

    return CalibrationData(
        names,
        {(name, "val"): count for name in names},
        lambda task, split, indices: ({"pixel_values": images[list(indices)]}, torch.zeros(len(indices))),
        {name: head(weight) for name, weight in weights.items()},
    )


def make(size: tuple[int, ...], num_models: int) -> Made:
    """All that both measurements need."""
    data = random_data(size, num_models)
    return *towers(size, num_models), data, [next(data.stream(task, "val", size[5])) for task in data.tasks]


def plain(model: nn.Module, data: CalibrationData, batches: Sequence[Batch]) -> None:
    """Forward and backward over one batch of each task, as in ordinary training."""
    model.zero_grad()
    for task, batch in zip(data.tasks, batches, strict=True):
        mean_entropy(data.logits(task, model, batch)).backward()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) time of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def extra_memory(work: Callable[[], object]) -> float:
    """Bytes at the highest point beyond those in use before; NaN where the system does not tell."""
    if sys.platform == "linux":
        # Without these the allocator would fill memory that it had kept from before, and nothing would rise.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        libc.malloc_trim(0)
    found = Measured(work, torch.device("cpu")).peak_memory
    return math.nan if found is None else found


def compare_seconds(name: str, made: Made, rounds: int) -> None:
    """Prints how long a step takes."""
    base, members, data, batches = made
    model, blend = copy.deepcopy(base), Blend(base, members, 0.3, by_layer=True)
    optimizer = torch.optim.Adam([blend.coefficients], lr=1e-3)
    plain(model, data, batches)  # the first call pays for what the later ones share
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for _ in range(rounds):
        alone = seconds(lambda: plain(model, data, batches))
        times.append((alone, seconds(lambda: step(blend, data, batches, optimizer))))
    count = sum(parameter.numel() for parameter in base.parameters())
    print(f"{name}: {len(members)} models of {count / 1e6:.1f} M parameters, {SIZES[name][5]} images per task")
    for kind, clock in enumerate(("wall", "processor")):
        alone, ours = (statistics.median(pair[which][kind] for pair in times) for which in (0, 1))
        print(f"  {clock:9} plain passes {alone:.3f} s, step {ours:.3f} s: {ours / alone:.3f} x")


def compare_memory(name: str, made: Made) -> None:
    """Prints how much memory two steps take beyond the models they were given."""
    base, members, data, batches = made
    size = sum(parameter.numel() * parameter.element_size() for parameter in base.parameters())
    settings = {"by_layer": True, "init": 0.3, "lr": 1e-3, "batch_size": SIZES[name][5], "clamp": None, "split": "val"}
    alone = extra_memory(lambda: plain(copy.deepcopy(base), data, batches)) / size
    ours = extra_memory(lambda: minimise_entropy(base, members, data, steps=2, **settings)) / size
    print(f"{name}: {ours:.2f} models beyond the inputs; plain passes through a copy of one model: {alone:.2f}")


def main() -> None:
    """Prints what it found for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    made = {name: make(SIZES[name], arguments.models) for name in arguments.sizes}
    for name in made:
        compare_seconds(name, made[name], arguments.rounds)
    for name in made:  # last, because it changes how memory is handed out
        compare_memory(name, made[name])


if __name__ == "__main__":
    main()
