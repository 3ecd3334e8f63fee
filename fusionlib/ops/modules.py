"""Modules that a fusion returns, and the one way to get logits from any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from fusionlib.core import FusionError, KeyMismatch, ParameterError
from fusionlib.ops.coefficients import one_of
from fusionlib.ops.finite import check_module_finite
from fusionlib.ops.given import check_listed, check_module, name_of

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

    Members are copies in evaluation mode, and stay in it whatever mode the ensemble is put into: they share the memory
    of the models' parameters, so that nothing is stored twice, and have buffers (running statistics) of their own. The
    models given are never changed.

    On a GPU the members run in one batched forward, over copies of their weights stacked into one tensor each
    (no extra memory once the members are let go); on a CPU one after the other, which is faster there except
    for very small batches (benchmarks/ensembles.py).

    Args:
        members: modules of one architecture.
        average: what is averaged, "logits", "probabilities" or "features" (the members' outputs before the
            head). Where the members end in logits themselves, the head is the identity.
        weights: one per member; equal if absent.
        batched: run the members in one forward; None decides by the device.
    Raises: ParameterError, for no members, no modules or an unknown ``average``; KeyMismatch, if their parameters
        differ; NonFiniteError, if they hold NaN or Inf.
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        average: str,
        weights: Sequence[float] | None = None,
        *,
        batched: bool | None = None,
    ) -> None:
        super().__init__()
        check_listed(members, "modules")
        members = list(members)
        if not members:
            raise ParameterError("an ensemble needs at least one member; `finetuned` is empty.")
        _check_members(members)
        self.average = one_of("average", average, AVERAGES)
        self.num_members = len(members)
        device = next(iter(tensors_of(members[0]).values()), torch.empty(0)).device
        share = [1.0 / len(members)] * len(members) if weights is None else [float(w) for w in weights]
        self.register_buffer("weights", torch.tensor(share, dtype=torch.float64, device=device))
        self.batched = device.type == "cuda" if batched is None else batched
        if not self.batched:
            self.members = nn.ModuleList(in_evaluation(members))
            return
        states = [tensors_of(member) for member in members]
        self._names = {f"stacked/{name.replace('.', '/')}": name for name in states[0]}
        parameters = dict(members[0].named_parameters())
        for slot, name in self._names.items():
            stacked = torch.stack([state[name].detach() for state in states])
            if name in parameters:
                self.register_parameter(slot, nn.Parameter(stacked, requires_grad=False))
            else:
                self.register_buffer(slot, stacked)
        # In a list, so that it is no submodule: it has a structure and no weights.
        self._skeleton = [with_tensors(members[0], lambda _, tensor: tensor.to("meta"))]

    def train(self, mode: bool = True) -> Ensemble:
        """As every module's, but that the members stay in evaluation mode: an ensemble is not trained."""
        super().train(mode)
        if not self.batched:
            self.members.eval()
        return self

    @property
    def compares_classes(self) -> bool:
        """Whether the rule is one for scores of classes, and says nothing about other outputs, such as depths."""
        return self.average == "probabilities"

    def given(self) -> dict[str, Any]:
        """What it was made with besides the members, as JSON values."""
        return {"average": self.average, "weights": self.weights.tolist()}

    def unstacked(self) -> list[nn.Module]:
        """The members as modules of their own; copies where they are stacked."""
        if not self.batched:
            return list(self.members)
        slots = {name: slot for slot, name in self._names.items()}
        return [
            with_tensors(self._skeleton[0], lambda name, _, i=index: getattr(self, slots[name])[i].clone())
            for index in range(self.num_members)
        ]

    def features(self, batch: Batch) -> Tensor:
        """Every member's output tensor, stacked: shape (T, B, ...)."""
        if not self.batched:
            return torch.stack([output_tensor(member(**batch)) for member in self.members])
        stacked = {original: getattr(self, name) for name, original in self._names.items()}

        def one(state: dict[str, Tensor]) -> Tensor:
            return output_tensor(functional_call(self._skeleton[0], state, (), dict(batch)))

        # The CPU's fused attention has no batching rule: vmap would warn, and run it member by member.
        on_cpu = self.weights.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            return torch.vmap(one, randomness="error")(stacked)

    def predict(self, head: Head, batch: Batch) -> Tensor:
        """Logits of the ensemble under one head, shape (B, classes)."""
        return self.combine(head, self.features(batch), batch)

    def combine(self, head: Head, features: Tensor, batch: Batch) -> Tensor:
        """Members' outputs (T, B, ...) to logits (B, classes); log-probabilities where those are averaged."""
        if self.average == "features":
            return head(self._mean(features), batch)
        logits = torch.stack([head(member, batch) for member in features])
        if self.average == "logits":
            return self._mean(logits)
        # The logarithm of the mean probability, without leaving logarithms: small ones do not become 0.
        log_weights = self.weights.log().to(logits.dtype).view(-1, *[1] * (logits.dim() - 1))
        return torch.logsumexp(logits.log_softmax(dim=-1) + log_weights, dim=0)

    def forward(self, **batch: Tensor) -> Tensor:
        """The ensemble's answer where the members end in logits (or features) themselves: shape (B, ...)."""
        return self.predict(lambda features, _: features, batch)

    def _mean(self, stacked: Tensor) -> Tensor:
        # Half precision is summed in float32, as every mean of this library is.
        exact = stacked.float() if stacked.dtype.itemsize < 4 else stacked
        return torch.tensordot(self.weights.to(exact.dtype), exact, dims=1).to(stacked.dtype)


class MaxEnsemble(Ensemble):
    """Several models that answer together: a class gets the highest logit that any member gives it.

    Args and errors: as :class:`Ensemble`, without weights and without a choice of what is combined.
        center: take each member's mean over the classes off its logits before they are compared.
    """

    def __init__(self, members: Sequence[nn.Module], *, center: bool = False, batched: bool | None = None) -> None:
        super().__init__(members, "logits", batched=batched)
        self.center = center

    @property
    def compares_classes(self) -> bool:
        """Always: it takes the highest score of every class."""
        return True

    def given(self) -> dict[str, Any]:
        """What it was made with besides the members, as JSON values."""
        return {"center": self.center}

    def combine(self, head: Head, features: Tensor, batch: Batch) -> Tensor:
        """The largest (centred) logit of every class over the members, shape (B, classes)."""
        logits = torch.stack([head(member, batch) for member in features])
        if self.center:
            logits = logits - logits.mean(dim=-1, keepdim=True)
        return logits.amax(dim=0)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that are not saved too; tied ones once, under their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def with_tensors(model: nn.Module, new: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy in evaluation mode with other tensors in the place of its own; what was tied stays tied."""
    memo: dict[int, Any] = {**_attributes(model)}
    for name, tensor in tensors_of(model).items():
        value = new(name, tensor.detach())
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(model, memo).eval()


def in_evaluation(models: Sequence[nn.Module]) -> list[nn.Module]:
    """Copies in evaluation mode that share the memory of the models' parameters, which ask for no gradients there.

    Everything else is a copy, so that nothing that the copies do changes the models. Where models share parameters, or
    are one and the same, so do the copies.
    """
    memo: dict[int, Any] = {}
    for model in models:
        memo.update(_attributes(model))
        for parameter in model.parameters():
            # a quantised parameter's own class knows how to read it
            plain = type(parameter) is nn.Parameter
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter
    return [model.eval() for model in copy.deepcopy(list(models), memo)]


def _attributes(model: nn.Module) -> dict[int, Tensor]:
    """Copies of tensors that are plain attributes, by id: they may hang on a graph, of which there is no deep copy."""
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(value): value.detach().clone() for value in held}


def _check_members(members: Sequence[nn.Module]) -> None:
    for index, member in enumerate(members):
        check_module(name_of(index), member)
        for name, tensor in tensors_of(member).items():
            if is_lazy(tensor) or tensor.is_meta:
                raise ParameterError(
                    f"{name_of(index)} has a tensor without numbers under {name!r}; load its weights first."
                )
        check_module_finite(name_of(index), member)
    shapes = {name: (value.shape, value.device) for name, value in tensors_of(members[0]).items()}
    for index, member in enumerate(members[1:], start=1):
        other = {name: (value.shape, value.device) for name, value in tensors_of(member).items()}
        odd = sorted(name for name in shapes.keys() | other.keys() if shapes.get(name) != other.get(name))
        if odd:
            raise KeyMismatch(
                f"finetuned[{index}] differs from finetuned[0] in {len(odd)} entries ({', '.join(odd[:5])}); "
                "the members of an ensemble must have one architecture, and be on one device."
            )
