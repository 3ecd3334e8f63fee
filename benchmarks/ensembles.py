"""How long an ensemble takes to answer: one model, its members one after the other, and all in one batched forward.

Eight copies of the embedded backbone with noise on their weights. The three ways answer the same batches in
turn, in the same run, so that a busy machine slows them alike; medians of several rounds. The two ways of the
ensemble are checked to agree.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import fusionlib as fl
from fusionlib.ops.modules import Ensemble, output_tensor


def noisy_members(suite: fl.Suite, count: int) -> list[nn.Module]:
    """Copies of the pretrained model that differ as fine-tunes do: a little, everywhere."""
    generator = torch.Generator().manual_seed(0)
    states = [
        {name: value + 0.01 * torch.randn(value.shape, generator=generator) for name, value in suite.pretrained.items()}
        for _ in range(count)
    ]
    return [suite.model(state) for state in states]


def seconds(work, device: torch.device) -> float:
    """Wall time of one call, until the device is done."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Prints one line per batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    suite = fl.load_suite("tiny-clip", ["mnist"], tuning="none", device=arguments.device)
    members = noisy_members(suite, arguments.models)
    loop = Ensemble(members, "logits", batched=False).eval()
    stacked = Ensemble(members, "logits", batched=True).eval()
    size = sum(parameter.numel() for parameter in members[0].parameters())
    print(
        f"{arguments.models} models of {size / 1e6:.2f} M parameters on {suite.device.type}, "
        f"{torch.get_num_threads()} threads; milliseconds per batch, median of {arguments.rounds}"
    )
    for count in arguments.batches:
        generator = torch.Generator().manual_seed(count)
        batch = {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator).to(suite.device)}
        torch.testing.assert_close(stacked.features(batch), loop.features(batch), rtol=1e-3, atol=1e-4)
        ways = {
            "one model": lambda batch=batch: output_tensor(members[0](**batch)),
            "one after the other": lambda batch=batch: loop.features(batch),
            "one batched forward": lambda batch=batch: stacked.features(batch),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, work in ways.items():
                times[name].append(1000 * seconds(work, suite.device))
        one, each, together = (statistics.median(values) for values in times.values())
        print(
            f"batch {count:4}: one model {one:7.1f}, one after the other {each:7.1f} ({each / one:4.1f} x), "
            f"one batched forward {together:7.1f} ({together / one:4.1f} x); batched / one after the other "
            f"{together / each:.2f}"
        )


if __name__ == "__main__":
    main()
