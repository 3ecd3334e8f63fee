"""Modules that a fusion returns, and the one way to get logits from any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from fusionlib.core import FusionError, KeyMismatch, ParameterError
from fusionlib.ops.coefficients import one_of

Batch = Mapping[str, Tensor]
Head = Callable[[Tensor, Batch], Tensor]
AVERAGES = ("logits", "probabilities", "features")
_OUTPUTS = ("logits", "image_embeds", "last_hidden_state")


def output_tensor(output: Any) -> Tensor:
    """The tensor of a model's output: itself, or the logits, embedding or hidden state of an output object.

    Raises: FusionError, naming what the output holds, if it is none of these.
    """
    if isinstance(output, Tensor):
        return output
    for name in _OUTPUTS:
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    held = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
    raise FusionError(f"the model returned {held}; needed is a tensor, or an output with {', '.join(_OUTPUTS)}.")


def predict(model: nn.Module, head: Head, batch: Batch) -> Tensor:
    """Logits of one task, shape (B, classes): the head on the model's features, as the model wants it.

    Args:
        model: a backbone, or an :class:`Ensemble`, which puts every member under the head.
        head: maps features of shape (B, dim) and the batch to logits.
        batch: keyword arguments of the model's forward.
    """
    if isinstance(model, Ensemble):
        return model.predict(head, batch)
    return head(output_tensor(model(**batch)), batch)


class Ensemble(nn.Module):
    """Several models that answer together: a weighted mean of what its members say.

    On a GPU the members run in one batched forward (their parameters are stacked, at no extra memory); on a
    CPU one after the other, which is faster there except for very small batches.

    Args:
        members: modules of one architecture.
        average: what is averaged, "logits", "probabilities" or "features" (the members' outputs before the
            head). Where the members end in logits themselves, the head is the identity.
        weights: one per member; equal if absent.
        batched: run the members in one forward; None decides by the device.
    Raises: ParameterError, for no members or an unknown ``average``; KeyMismatch, if their parameters differ.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        average: str,
        weights: Sequence[float] | None = None,
        *,
        batched: bool | None = None,
    ) -> None:
        super().__init__()
        if not members:
            raise ParameterError("an ensemble needs at least one member; `finetuned` is empty.")
        _check_alike(members)
        self.average = one_of("average", average, AVERAGES)
        self.num_members = len(members)
        share = [1.0 / len(members)] * len(members) if weights is None else [float(w) for w in weights]
        self.register_buffer("weights", torch.tensor(share, device=next(members[0].parameters()).device))
        first = next(members[0].parameters())
        self.batched = first.device.type == "cuda" if batched is None else batched
        if self.batched:
            parameters, buffers = stack_module_state(list(members))
            self._names = {name.replace(".", "/"): name for name in (*parameters, *buffers)}
            for name, value in parameters.items():
                self.register_parameter(name.replace(".", "/"), nn.Parameter(value.detach(), requires_grad=False))
            for name, value in buffers.items():
                self.register_buffer(name.replace(".", "/"), value)
            # In a list, so that it is no submodule: it has a structure and no weights.
            self._skeleton = [copy.deepcopy(members[0]).to("meta").eval()]
        else:
            self.members = nn.ModuleList(members)

    def features(self, batch: Batch) -> Tensor:
        """Every member's output tensor, stacked: shape (T, B, ...)."""
        if not self.batched:
            return torch.stack([output_tensor(member(**batch)) for member in self.members])
        stacked = {original: getattr(self, name) for name, original in self._names.items()}

        def one(state: dict[str, Tensor]) -> Tensor:
            return output_tensor(functional_call(self._skeleton[0], state, (), dict(batch)))

        return torch.vmap(one, randomness="error")(stacked)

    def predict(self, head: Head, batch: Batch) -> Tensor:
        """Logits of the ensemble under one head, shape (B, classes); log-probabilities where those are averaged."""
        features = self.features(batch)
        if self.average == "features":
            return head(self._mean(features), batch)
        logits = torch.stack([head(member, batch) for member in features])
        if self.average == "logits":
            return self._mean(logits)
        return self._mean(logits.softmax(dim=-1)).log()

    def forward(self, **batch: Tensor) -> Tensor:
        """The ensemble's answer where the members end in logits (or features) themselves: shape (B, ...)."""
        return self.predict(lambda features, _: features, batch)

    def _mean(self, stacked: Tensor) -> Tensor:
        weights = torch.as_tensor(self.weights, dtype=stacked.dtype)
        return torch.tensordot(weights, stacked, dims=1)


def _check_alike(members: Sequence[nn.Module]) -> None:
    shapes = {name: value.shape for name, value in members[0].state_dict().items()}
    for index, member in enumerate(members[1:], start=1):
        other = {name: value.shape for name, value in member.state_dict().items()}
        odd = sorted(name for name in shapes.keys() | other.keys() if shapes.get(name) != other.get(name))
        if odd:
            raise KeyMismatch(
                f"finetuned[{index}] differs from finetuned[0] in {len(odd)} entries ({', '.join(odd[:5])}); "
                "the members of an ensemble must have one architecture."
            )
