"""Weight-ensembling mixture of experts: routers that merge every MLP anew for every input."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from fusionlib.core import MethodCard, NonFiniteError
from fusionlib.ops.blocks import mlp_names
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.constraints import Count, Positive, Whole
from fusionlib.ops.entropy import mean_entropy
from fusionlib.ops.guided import checked_result, checked_states, with_weights
from fusionlib.ops.streaming import Block, stream
from fusionlib.ops.substitutes import with_substitutes
from fusionlib.ops.values import checked
from fusionlib.ops.weight_ensembling import WeightEnsembledMLP

card = MethodCard(
    name="we_moe",
    title="Weight-Ensembling MoE",
    cite="Tang2024a",
    kind="mix",
    takes="models",
    needs=frozenset({"inputs"}),
    needs_when=MappingProxyType({("split", "test"): "test-inputs"}),
    scope="model",
    identity=MappingProxyType({"router_layers": 0, "init": 1.0, "scale": 1.0, "steps": 0}),
    grid=MappingProxyType({"lr": (1e-4, 3e-4, 1e-3)}),
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module],
    *,
    data: CalibrationData,
    scale: float = 0.3,
    router_layers: Literal[0, 1, 2] = 2,
    init: float = 0.3,
    lr: Positive = 1e-4,
    steps: Whole = 500,
    batch_size: Count = 16,
    split: Literal["train", "val", "test"] = "val",
) -> nn.Module:
    """Task arithmetic, except that in each MLP a router sets the coefficients of the task vectors for every sample.

    Args:
        data: of every task one batch per step is read, inputs only; its seed also draws the routers.
        scale: coefficient of the task vectors outside the MLPs.
        router_layers: 2, 1, or 0 for coefficients that do not depend on the input.
        init: the routers' last bias, about what every coefficient starts at.
        lr, steps, batch_size: of Adam on the routers; inputs per task and step.
        split: whose inputs are read; "test" is what the paper does, and must be allowed by ``data``.
    Returns: a copy of the model with :class:`WeightEnsembledMLP` inside; its ``entropies`` (steps, T; nats) are no part
        of the state dict. Raises: ParameterError, KeyMismatch, NonFiniteError.
    Source: Tang et al. 2024, "Merging multi-task models via weight-ensembling mixture of experts", section 3.
    Deviates: adapts on validation inputs by default. FusionBench's ``batch_reduce`` averages the weights over a batch;
        here a sample's never depend on the others, and padding is left out of the mean over tokens. A causal model
        routes by the whole text it is given: it can classify, but its next token depends on how the text is cut.
    """
    base, states = checked_states(pretrained, finetuned, data)

    def task_arithmetic(block: Block) -> Tensor:
        change = sum((model - block.base for model in block.models), torch.zeros_like(block.base))
        return change.mul_(scale).add_(block.base)

    mlps = {}
    for name in mlp_names(pretrained):
        mlps[name] = WeightEnsembledMLP(pretrained.get_submodule(name), len(finetuned), router_layers)
        mlps[name].fill([model.get_submodule(name) for model in finetuned])
        mlps[name].draw_router(
            init, data.generator("we_moe", name), [data.generator("we_moe", name, task) for task in data.tasks]
        )
    mixed = with_substitutes(with_weights(pretrained, stream(base, states, task_arithmetic)), mlps)
    routers = [parameter for mlp in mlps.values() for parameter in mlp.router.parameters()]
    mixed.entropies = _train(routers, mixed, data, lr, steps, batch_size, split)  # type: ignore[assignment]
    for name, mlp in mlps.items():
        if not all(bool(torch.isfinite(parameter).all()) for parameter in mlp.router.parameters()):
            raise NonFiniteError(
                f"after {steps} steps the router of {name!r} is not finite; the predictions had become NaN or Inf on "
                f"the way. Use a smaller lr than {lr:g}."
            )
        mlp.router.to(next(mlp.base.parameters()).dtype)
    return checked_result(mixed, pretrained)


def _train(
    routers: list[nn.Parameter],
    mixed: nn.Module,
    data: CalibrationData,
    lr: float,
    steps: int,
    batch_size: int,
    split: str,
) -> Tensor:
    streams = {task: data.stream(task, split, batch_size) for task in data.tasks}
    asked = [parameter for parameter in mixed.parameters() if parameter.requires_grad]
    mixed.requires_grad_(False)
    for parameter in routers:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(routers, lr=lr)
    entropies = []
    with torch.enable_grad():
        for _ in range(steps):
            losses = []
            for task, batches in streams.items():  # one after the other: the activations of one batch at a time
                loss = mean_entropy(data.logits(task, mixed, next(batches)))
                loss.backward()
                losses.append(loss.detach())
            entropies.append(torch.stack(losses))
            adam.step()
            adam.zero_grad()
    for parameter in asked:
        parameter.requires_grad_(True)
    return torch.stack(entropies).cpu() if entropies else torch.zeros(0, len(streams))
