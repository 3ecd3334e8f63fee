"""Fisher merging: average every weight over the models, each model weighted by how much the weight matters to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from fusionlib.core import MethodCard, NonFiniteError, StateDict
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.constraints import Count, NotNegative
from fusionlib.ops.fisher import diagonal_fisher
from fusionlib.ops.guided import checked_states, with_weights
from fusionlib.ops.modules import Batch
from fusionlib.ops.streaming import Block, mean, stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="fisher_merging",
    title="Fisher Merging",
    cite="Matena2022",
    kind="merge",
    takes="models",
    needs=frozenset({"inputs"}),
    needs_when=MappingProxyType({("labels", "data"): "labels"}),
    scope="tensor",
    identity={},
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    data: CalibrationData,
    num_examples: Count = 256,
    batch_size: Count = 32,
    floor: NotNegative = 1e-6,
    normalize: bool = True,
    labels: Literal["model", "data"] = "model",
) -> nn.Module:
    """The mean of the models, each weight weighted by its diagonal Fisher information in each model.

    Args:
        data: training inputs of every task, in the order of ``finetuned``, and the heads.
        num_examples: drawn per task, without replacement.
        batch_size: examples read at once; without effect on the result.
        floor: added to the Fisher information, 0 or greater. Weights on which no model depends are averaged.
        normalize: divide each model's Fisher information by its Euclidean norm, so that a model does not count less
            for being sure of its predictions. ``floor`` is added after that.
        labels: "model" takes the expectation over the labels that the model predicts; "data" the given labels.
    Returns: a new module of the pretrained kind. Buffers are averaged, integer ones the pretrained model's. The same
        bits come again with the same number of threads; with another, the last ones may differ.
    Raises: ParameterError, KeyMismatch, NonFiniteError.
    Source: Matena and Raffel 2022, "Merging models with Fisher-weighted averaging", equations 2 to 5.
    Deviates: with many classes the expectation over labels is estimated with random signs, not with one sampled label
        (see ``ops.fisher``). The authors search a coefficient per model; here normalising takes its place. FusionBench
        squares the gradient of a summed batch, and reads the first 256 images.
    """
    base, states = checked_states(pretrained, finetuned, data)
    weights, moves = _Sums(), _Sums()
    for task, model, state in zip(data.tasks, finetuned, states, strict=True):
        examples: Iterable[tuple[Batch, Tensor | None]] = (
            data.draw_labelled(task, "train", num_examples, batch_size)
            if labels == "data"
            else ((batch, None) for batch in data.draw(task, "train", num_examples, batch_size))
        )
        fisher = diagonal_fisher(
            model,
            lambda model, batch, task=task: data.logits(task, model, batch),
            examples,
            generator=data.generator("fisher", task),
        )
        # in float64, as squares of squared gradients underflow
        norm = math.sqrt(sum(float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2 for v in fisher.values()))
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradients of the model of {task!r} hold NaN or Inf; check the inputs of this task, and its head."
            )
        for name, value in fisher.items():
            # A model that is certain of everything has no Fisher information, and nothing to divide by.
            weight = value.div_(norm if normalize and norm else 1.0).add_(floor)
            weights.add(name, weight)
            moves.add(name, weight * (state[name] - base[name]).to(weight.dtype))

    def merged(block: Block) -> Tensor:
        if block.name not in weights.state:
            return mean(block)
        weight, move = block.of(weights.state), block.of(moves.state)
        return torch.where(weight > 0, block.base + move / weight, mean(block))

    return with_weights(pretrained, stream(base, states, merged))


class _Sums:
    """Sums of tensors by name, so that no more than one model's Fisher information is held beside them."""

    def __init__(self) -> None:
        self.state: StateDict = {}

    def add(self, name: str, value: Tensor) -> None:
        self.state[name] = self.state[name].add_(value) if name in self.state else value
