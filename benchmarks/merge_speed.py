"""How long merging takes, against the speed at which this machine copies memory, measured in the same run.

Eight models of 87 million float32 parameters, shaped like a ViT-B/32. The floor of a merge that reads T + 1
models and writes one is the time to move as many bytes with ``Tensor.copy_`` into memory that is already
mapped; a second floor copies into new memory, as a merge must. Medians over several rounds, in turn; in a round each
runs once untimed and then three times, as a virtual machine is slow to give memory that has lain free for a while.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from fusionlib.bench.measure import Measured
from fusionlib.core import StateDict
from fusionlib.methods import simple_average, task_arithmetic, ties_merging


def vit_b32(generator: torch.Generator, like: StateDict | None = None) -> StateDict:
    """A random state dict with ViT-B/32's shapes; near ``like`` if given."""
    shapes = {"embed": (768, 3072), "position": (50, 768), "projection": (512, 768)}
    for layer in range(12):
        shapes |= {f"{layer}.attention.{name}": (768, 768) for name in "qkvo"}
        shapes |= {f"{layer}.fc1": (3072, 768), f"{layer}.fc2": (768, 3072)}
        shapes |= {f"{layer}.norm{i}": (768,) for i in range(4)}
    std = 0.02 if like is None else 0.001
    state = {name: torch.randn(shape, generator=generator) * std for name, shape in shapes.items()}
    return state if like is None else {name: like[name] + value for name, value in state.items()}


def main() -> None:
    """Prints one line per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    pretrained = vit_b32(generator)
    finetuned = [vit_b32(generator, like=pretrained) for _ in range(arguments.models)]
    mapped = {name: value.clone() for name, value in pretrained.items()}

    def copy_all(state: StateDict) -> None:
        for name, value in state.items():
            mapped[name].copy_(value)

    def clone_all(state: StateDict) -> StateDict:
        return {name: value.clone() for name, value in state.items()}

    works: dict[str, Callable[[], object]] = {
        "copy": lambda: copy_all(finetuned[0]),
        "clone": lambda: clone_all(finetuned[0]),
        "simple_average": lambda: simple_average.fuse(pretrained, finetuned),
        "task_arithmetic": lambda: task_arithmetic.fuse(pretrained, finetuned),
        "ties_merging": lambda: ties_merging.fuse(pretrained, finetuned),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    extra: dict[str, int] = {}
    for _ in range(arguments.rounds):
        for name in works:
            works[name]()
            for _ in range(3):
                measured = Measured(works[name], torch.device("cpu"))
                times[name].append(measured.seconds)
                extra[name] = max(extra.get(name, 0), measured.peak_memory or 0)
                del measured  # with the result, so that the next one is made in new memory
    median = {name: statistics.median(values) for name, values in times.items()}
    # T + 1 reads and one write; a copy is one read and one write.
    floor = median["copy"] * (arguments.models + 2) / 2
    fresh = floor - median["copy"] + median["clone"]
    count = sum(value.numel() for value in pretrained.values())
    print(f"{arguments.models} models of {count / 1e6:.1f} M parameters, {torch.get_num_threads()} threads")
    print(f"floor {floor:.3f} s into mapped memory, {fresh:.3f} s into new memory")
    for name in ("simple_average", "task_arithmetic", "ties_merging"):
        print(
            f"{name:16} {median[name]:.3f} s = {median[name] / floor:.2f} x and {median[name] / fresh:.2f} x the "
            f"floors; {extra[name] / 1e9:.2f} GB beyond the inputs (the result is {4 * count / 1e9:.2f})"
        )


if __name__ == "__main__":
    main()
