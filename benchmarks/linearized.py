"""What a linearised model costs: passes of the embedded backbone with LoRA, and of its linearisation in the adapters.

Forward alone and forward with backward, in turn and in the same run, so that a busy machine slows them alike; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import fusionlib as fl
from fusionlib.ops.linearized import Linearized, names_with
from fusionlib.ops.modules import output_tensor
from fusionlib.zoo.adapters import wrap


def main() -> None:
    """Prints one line per kind of pass."""
    from peft import LoraConfig

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    suite = fl.load_suite("tiny-clip", ["mnist"], tuning="none", device="cpu")
    lora = wrap(suite.model(), LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    linear = Linearized(lora, names_with(lora, lambda name: "lora_" in name))
    pixels = torch.randn(arguments.batch, 3, 32, 32)

    def forward(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            model(pixel_values=pixels)

    def training(model: torch.nn.Module) -> None:
        output_tensor(model(pixel_values=pixels)).sum().backward()

    passes: list[tuple[str, Callable[[torch.nn.Module], None]]] = [("forward", forward), ("with backward", training)]
    for name, once in passes:
        seconds: dict[torch.nn.Module, list[float]] = {lora: [], linear: []}
        for _ in range(arguments.rounds):
            for model, taken in seconds.items():
                start = time.perf_counter()
                once(model)
                taken.append(time.perf_counter() - start)
        plain, expanded = (statistics.median(taken) for taken in seconds.values())
        ratio = expanded / plain
        print(f"{name:<14} LoRA {1000 * plain:6.1f} ms, linearised {1000 * expanded:6.1f} ms: {ratio:.1f} times")


if __name__ == "__main__":
    main()
