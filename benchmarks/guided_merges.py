"""How long merges guided by data take, against plain passes over the same examples, measured in the same run.

RegMean needs a forward pass of every model over its inputs, Fisher merging a forward and a backward pass; what
they take beyond that is their own. Two vision towers with random weights and pictures: the embedded suite's, and
one of width 512 with 8 layers. Medians of several rounds, in turn; memory is the highest rise in any round.
What RegMean takes for a single picture is nearly all for solving, however many pictures there are.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fusionlib.bench.measure import Measured
from fusionlib.methods import fisher_merging, regmean
from fusionlib.ops.calibration import CalibrationData

BATCH = 32  # what the methods read at once by default
CLASSES = 10
TINY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
WIDE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "patch_size": 16, "image_size": 112}


def tower(shape: dict[str, int], seed: int) -> nn.Module:
    """A CLIP vision tower with random weights, 384 features."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    width = 4 * shape["hidden_size"]
    config = CLIPVisionConfig(**shape, intermediate_size=width, projection_dim=384)  # pyright: ignore[reportArgumentType]
    return CLIPVisionModelWithProjection(config).eval()


def pictures(num_tasks: int, num_examples: int, size: int) -> CalibrationData:
    """Random pictures of every task, and random heads."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"task {index}" for index in range(num_tasks))
    inputs = {name: torch.randn(num_examples, 3, size, size, generator=generator) for name in names}
    heads = {name: torch.randn(384, CLASSES, generator=generator) / 384**0.5 for name in names}

    def read(task: str, split: str, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        return {"pixel_values": inputs[task][list(indices)]}, torch.zeros(len(indices), dtype=torch.int64)

    sizes = {(name, "train"): num_examples for name in names}
    return CalibrationData(
        names, sizes, read, {name: lambda features, _, head=head: features @ head for name, head in heads.items()}
    )


def forward(models: Sequence[nn.Module], data: CalibrationData, num_examples: int) -> None:
    """What any method that only looks at activations must do."""
    with torch.no_grad():
        for task, model in zip(data.tasks, models, strict=True):
            for batch in data.draw(task, "train", num_examples, BATCH):
                data.logits(task, model, batch)


def forward_and_backward(models: Sequence[nn.Module], data: CalibrationData, num_examples: int) -> None:
    """What any method that needs gradients must do."""
    for task, model in zip(data.tasks, models, strict=True):
        for batch in data.draw(task, "train", num_examples, BATCH):
            data.logits(task, model, batch).log_softmax(dim=-1).amax(dim=-1).sum().backward()
        model.zero_grad(set_to_none=True)


def compare(title: str, shape: dict[str, int], num_tasks: int, num_examples: int, rounds: int) -> None:
    """Prints a line per method for one tower."""
    base, *models = (tower(shape, seed) for seed in range(num_tasks + 1))
    data = pictures(num_tasks, num_examples, shape["image_size"])
    works: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(models, data, num_examples),
        "forward and backward": lambda: forward_and_backward(models, data, num_examples),
        "regmean": lambda: regmean.fuse(base, models, data=data, num_examples=num_examples),
        "regmean, one picture": lambda: regmean.fuse(base, models, data=data, num_examples=1),
        "fisher_merging": lambda: fisher_merging.fuse(base, models, data=data, num_examples=num_examples),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    extra = dict.fromkeys(works, 0)
    for _ in range(rounds):
        for name, work in works.items():
            give_back()
            found = Measured(work, torch.device("cpu"))
            seconds[name].append(found.seconds)
            extra[name] = max(extra[name], found.peak_memory or 0)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    count = sum(parameter.numel() for parameter in base.parameters())
    print(f"{title}: {count / 1e6:.1f} M parameters, {num_tasks} models, {num_examples} pictures each")
    for name, plain in (("regmean", "forward"), ("fisher_merging", "forward and backward")):
        times = f"{median[name]:6.2f} s = {median[name] / median[plain]:.2f} x {plain} ({median[plain]:.2f} s)"
        memory = f"{extra[name] / 1e6:.0f} MB ({plain}: {extra[plain] / 1e6:.0f}; a model: {count / 2.5e5:.0f})"
        print(f"  {name:14} {times}; memory rose by {memory}")
    print(f"  of which regmean takes {median['regmean, one picture']:.2f} s with a single picture per model")


def give_back() -> None:
    """Returns what the allocator keeps to the system, so that memory counts as taken when it is taken again."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Prints the figures of both towers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    compare("the embedded suite's tower", TINY, arguments.models, 256, arguments.rounds)
    compare("a larger tower", WIDE, arguments.models, 32, max(1, arguments.rounds - 1))


if __name__ == "__main__":
    main()
