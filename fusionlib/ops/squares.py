"""Squared gradients summed over examples, each example's by itself, at little more than one backward pass for all.

What a linear layer's weight gets as its gradient for one example is a product of what the layer received with the
gradient of what it gave, summed over tokens. So the weights of linear layers, which are most of a model, need no
gradient of their own: it is made, squared and added a few examples at a time, and never held for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionlib.core import StateDict
from fusionlib.ops.gram import linear_layers
from fusionlib.ops.modules import Batch
from fusionlib.ops.streaming import CPU_BLOCK, GPU_BLOCK

Score = Callable[[nn.Module, Batch, Tensor], Tensor]
Watch = Callable[[str, Tensor, Tensor], Tensor | None]


def one_by_one(model: nn.Module, score: Score, batch: Batch, directions: Tensor) -> StateDict:
    """The sum over examples of the squared gradient of ``score``: a backward pass for each, simple and slow.

    Args:
        score: (model, batch of one example, its direction) -> the number to differentiate.
        batch: B examples.
        directions: B rows, one per example.
    Returns: parameter name -> tensor of its shape; tied parameters once.
    """
    scored = _Scored(model, score)
    parameters = {name: value.requires_grad_() for name, value in _parameters(model).items()}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for row, direction in enumerate(directions):
        example = {name: value[row : row + 1] for name, value in batch.items()}
        with torch.enable_grad():
            found = scored.at(parameters, example, direction)
            gradients = torch.autograd.grad(found, list(parameters.values()), materialize_grads=True)
        for value, gradient in zip(total.values(), gradients, strict=True):
            value += gradient.square()
    return total


def all_at_once(model: nn.Module, score: Score, batch: Batch, directions: Tensor) -> StateDict:
    """As ``one_by_one``, quickly. Raises RuntimeError about "vmap" for models that look at values to branch."""
    scored, layers = _Scored(model, score), _layers(model)
    zeros: dict[str, list[Tensor]] = {}  # to add to what layers give, by weight and call

    def note(weight: str, _: Tensor, output: Tensor) -> None:
        zeros.setdefault(weight, []).append(torch.zeros_like(output))

    with torch.no_grad(), _watched(layers, note):
        score(model, {name: value[:1] for name, value in batch.items()}, directions[0])

    def probed(others: StateDict, probes: Mapping[str, list[Tensor]], example: Batch, direction: Tensor) -> Any:
        received: dict[str, list[Tensor]] = {}

        def probe(weight: str, inputs: Tensor, output: Tensor) -> Tensor:
            calls = received.setdefault(weight, [])
            calls.append(inputs.detach())
            return output + probes[weight][len(calls) - 1]

        with _watched(layers, probe):
            return scored.at(others, {name: value[None] for name, value in example.items()}, direction), received

    # Every example has a copy of its own of what is differentiated, so that one backward pass tells them apart.
    count = len(directions)
    others = {name: _copies(value, count) for name, value in _parameters(model).items() if name not in zeros}
    probes = {weight: [_copies(value, count) for value in calls] for weight, calls in zeros.items()}
    with torch.enable_grad(), _plain_attention():
        scores, received = vmap(probed)(others, probes, dict(batch), directions)
        leaves = [*others.values(), *(probe for calls in probes.values() for probe in calls)]
        gradients = iter(torch.autograd.grad(scores.sum(), leaves, materialize_grads=True))
    total = {name: next(gradients).square().sum(dim=0) for name in others}
    for weight, calls in probes.items():
        slopes = _by_example([next(gradients) for _ in calls])
        inputs = _by_example(received.pop(weight))
        transposed = layers[weight][1]
        total[weight] = _squared_products(*((inputs, slopes) if transposed else (slopes, inputs)))
    return total


def held_per_example(model: nn.Module) -> int:
    """Bytes of gradients that ``all_at_once`` holds for each example."""
    layers = _layers(model)
    return sum(v.numel() * v.element_size() for name, v in _parameters(model).items() if name not in layers)


class _Scored(nn.Module):
    """Makes a call of ``score`` the forward of a module, as ``functional_call`` wants it."""

    def __init__(self, model: nn.Module, score: Score):
        super().__init__()
        self.model = model
        self.score = score

    def forward(self, batch: Batch, direction: Tensor) -> Tensor:
        return self.score(self.model, batch, direction)

    def at(self, parameters: StateDict, batch: Batch, direction: Tensor) -> Tensor:
        """The score with these parameters in place of the model's own."""
        named = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(self, named, (batch, direction))


def _parameters(model: nn.Module) -> StateDict:
    return {name: value.detach() for name, value in model.named_parameters()}


def _copies(value: Tensor, count: int) -> Tensor:
    return value.detach().expand(count, *value.shape).requires_grad_()


def _layers(model: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Weight name -> (layer, transposed), of layers that do no more than multiply by a weight that is theirs alone."""
    owners = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    found = {}
    for name, layer, transposed in linear_layers(model):
        weight = layer._parameters.get("weight")
        plain = transposed or type(layer).forward is nn.Linear.forward
        if weight is not None and plain and owners[id(weight)] == 1:
            found[f"{name}.weight" if name else "weight"] = layer, transposed
    return found


@contextmanager
def _watched(layers: Mapping[str, tuple[nn.Module, bool]], watch: Watch) -> Iterator[None]:
    """Calls ``watch`` with what a layer receives and gives; what it returns, if anything, is given instead."""

    def hook(weight: str) -> Callable[..., Tensor | None]:
        return lambda _, arguments, named, output: watch(weight, next(iter((*arguments, *named.values()))), output)

    with ExitStack() as stack:
        for weight, (layer, _) in layers.items():
            stack.callback(layer.register_forward_hook(hook(weight), with_kwargs=True).remove)
        yield


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in single steps: the fused kernels cannot be taken example by example."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _by_example(calls: list[Tensor]) -> Tensor:
    """What the calls of a layer received, or their slopes, shape (examples, tokens, dim)."""
    found = [call.reshape(len(call), -1, call.shape[-1]) for call in calls]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _squared_products(left: Tensor, right: Tensor) -> Tensor:
    """The sum over examples of (left^T right) squared; shapes (B, tokens, m) and (B, tokens, n) to (m, n)."""
    if left.shape[1] == 1:  # the square of a product of two numbers is that of their squares
        return left[:, 0].square().T @ right[:, 0].square()
    total = left.new_zeros(left.shape[2], right.shape[2])
    size = max(1, (CPU_BLOCK if left.device.type == "cpu" else GPU_BLOCK) // total.numel())
    for some, others in zip(left.split(size), right.split(size), strict=True):
        total += torch.bmm(some.mT, others).square_().sum(dim=0)
    return total
