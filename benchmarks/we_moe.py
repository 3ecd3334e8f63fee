"""Three ways to run an MLP that is merged for every sample, and in how large chunks: CPU time of one thread.

``loop`` merges and runs one sample after the other. ``products`` never merges: it applies the pretrained MLP and
all task vectors to every token and weighs the results, as one matrix product per layer. ``side by side`` is what
``fusionlib.ops.weight_ensembling`` does: the weights of a chunk of samples by one product, then all of them at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fusionlib.ops import weight_ensembling
from fusionlib.ops.weight_ensembling import WeightEnsembledMLP

# name, width, hidden units, tokens, samples
SHAPES = (("tiny-clip", 128, 512, 17, 256), ("tiny-clip, training", 128, 512, 17, 8), ("ViT-B/32", 768, 3072, 50, 16))
CHUNKS = (4, 16, 64, 256)  # MB; the library takes 16 on a CPU


def ensembled(width: int, units: int, num_tasks: int) -> WeightEnsembledMLP:
    """A random one, with two linear layers."""
    torch.manual_seed(0)
    make = [nn.Sequential(nn.Linear(width, units), nn.GELU(), nn.Linear(units, width)) for _ in range(num_tasks + 1)]
    mixed = WeightEnsembledMLP(make[0], num_tasks, router_layers=2)
    mixed.fill(make[1:])
    mixed.draw_router(0.3, torch.Generator(), [torch.Generator()] * num_tasks)
    return mixed.eval()


def loop(mixed: WeightEnsembledMLP, hidden: Tensor) -> Tensor:
    """One sample after the other."""
    outputs = []
    for sample, weights in zip(hidden.split(1), mixed.routing(hidden).split(1), strict=True):
        parameters = {name: value[0] for name, value in mixed.merged(weights).items()}
        outputs.append(functional_call(mixed.base, parameters, (sample,)))
    return torch.cat(outputs)


def products(mixed: WeightEnsembledMLP, hidden: Tensor) -> Tensor:
    """All T + 1 matrices on every token, weighed by stacking weighed copies of the input."""
    weights = mixed.routing(hidden)
    weights = torch.cat([torch.ones_like(weights[:, :1]), weights], dim=1)
    for index, layer in enumerate(mixed.base):
        if not isinstance(layer, nn.Linear):
            hidden = layer(hidden)
            continue
        vectors = mixed.task_vectors[index]
        matrices = torch.cat([layer.weight[None], vectors.weight]).transpose(1, 2).flatten(0, 1)
        biases = torch.cat([layer.bias[None], vectors.bias])
        stacked = (weights[:, None, :, None] * hidden[:, :, None, :]).flatten(2)
        hidden = stacked @ matrices + (weights @ biases)[:, None]
    return hidden


def milliseconds(work: Callable[[], Tensor], rounds: int, backward: bool) -> float:
    """Median of the rounds, with the backward pass if asked for."""
    taken = []
    for _ in range(rounds + 1):
        start = time.process_time()
        with torch.set_grad_enabled(backward):
            output = work()
            if backward:
                output.sum().backward()
        taken.append(1000 * (time.process_time() - start))
    return statistics.median(taken[1:])


def main() -> None:
    """Prints one line per shape and direction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, width, units, tokens, samples in SHAPES:
        mixed, hidden = ensembled(width, units, arguments.tasks), torch.randn(samples, tokens, width)
        with torch.no_grad():
            for other in (loop, products):
                torch.testing.assert_close(other(mixed, hidden), mixed(hidden), rtol=1e-3, atol=1e-3)
        for backward in (False, True):
            given = (arguments.rounds, backward)
            hidden.requires_grad_(backward)
            found = [f"one MLP {milliseconds(lambda m=mixed, h=hidden: m.base(h), *given):.1f}"]
            found += [
                f"{f.__name__} {milliseconds(lambda f=f, m=mixed, h=hidden: f(m, h), *given):.1f}"
                for f in (loop, products)
            ]
            for chunk in CHUNKS:
                weight_ensembling.CPU_WEIGHTS = chunk << 20
                found.append(f"side by side in {chunk} MB {milliseconds(lambda m=mixed, h=hidden: m(h), *given):.1f}")
            print(f"{name} ({'forward and backward' if backward else 'forward'}, ms): {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
