"""State dicts as vectors: the checks every fusion makes first, and task vectors with their arithmetic.

Conventions, stated once. Only floating-point entries are fused. Integer, boolean and complex ones are taken from the
pretrained model, and must be the same in all models, or they would be lost: all but counters (one number, such as
BatchNorm's ``num_batches_tracked``) and indices (``COUNTERS``). So may infinite numbers, such as a mask's: an entry
that holds some and is the same in all models is a constant, and taken as it is. BatchNorm's running statistics are
floating point, hence fused like weights; no variance may come out below 0 (see ``ops.variances``). Arithmetic is done
in float32 (float64 inputs stay float64) and cast back to the pretrained dtype. Names of the pretrained state dict that
share storage (tied weights) are fused once and stay tied. Inputs are never modified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionlib.core import KeyMismatch, NotApplicable, StateDict
from fusionlib.ops import given
from fusionlib.ops.finite import check_finite, is_constant, probably_finite

COUNTERS = ("num_batches_tracked", "n_averaged", "num_updates", "position_ids", "token_type_ids")
COUNTERS += ("relative_position_index",)


def check_compatible(pretrained: StateDict, finetuned: Sequence[StateDict], names: Sequence[str] | None = None) -> None:
    """Refuse models that cannot be fused.

    Args:
        names: what to call the fine-tuned models in an error; "finetuned[0]" and so on if absent.
    Raises: KeyMismatch, naming the model, the keys and the shapes, if keys, shapes, kinds of dtype or devices
        differ from the pretrained ones, if weights tied in the pretrained model differ in a fine-tuned one, or if an
        entry that is not fused does. ParameterError, if these are no state dicts, or there is no fine-tuned model.
        NotApplicable, for numbers that can't be averaged: quantised, complex.
    """
    given.num_models(finetuned)
    given.check_state(given.BASE, pretrained)
    given.check_something(pretrained)
    ties = tied_names(pretrained)
    for index, state in enumerate(finetuned):
        name = repr(names[index]) if names is not None else given.name_of(index)
        given.check_state(name, state)
        _check_keys(name, pretrained, state)
        for key, tensor in state.items():
            _check_tensor(name, key, pretrained[key], tensor)
            if not tensor.is_floating_point():
                _check_constant(name, key, pretrained[key], tensor)
        for key, first in ties.items():
            if state[key].data_ptr() != state[first].data_ptr() and not torch.equal(state[key], state[first]):
                raise KeyMismatch(
                    f"{name} has different values under {first!r} and {key!r}, which are one tied tensor in the "
                    "pretrained model. Tie them in the fine-tuned model, or untie (clone) them in the pretrained one."
                )


def _check_keys(name: str, pretrained: StateDict, state: StateDict) -> None:
    for problem, keys in (
        ("lacks", pretrained.keys() - state.keys()),
        ("has besides", state.keys() - pretrained.keys()),
    ):
        if keys:
            listed = ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")
            raise KeyMismatch(
                f"{name} {problem} {len(keys)} of {len(pretrained)} keys of the pretrained state dict: {listed}. "
                "Fuse backbones of one architecture only; heads stay with their task (see Suite.heads)."
            )


def _check_tensor(name: str, key: str, base: Tensor, tensor: Tensor) -> None:
    if tensor.shape != base.shape:
        raise KeyMismatch(
            f"{name} has shape {tuple(tensor.shape)} under {key!r}, the pretrained model {tuple(base.shape)}; "
            "only models of one architecture can be fused."
        )
    if tensor.is_floating_point() != base.is_floating_point():
        raise KeyMismatch(
            f"{name} has dtype {tensor.dtype} under {key!r}, the pretrained model {base.dtype}; "
            "one is floating point and the other not."
        )
    if tensor.device != base.device:
        raise KeyMismatch(
            f"{name} has {key!r} on {tensor.device}, the pretrained model on {base.device}; "
            "move all models to one device first."
        )


def _check_constant(name: str, key: str, base: Tensor, tensor: Tensor) -> None:
    if base.is_complex() or tensor.is_complex():
        if not torch.equal(_real(base), _real(tensor)):
            raise NotApplicable(
                f"{name} has other complex numbers under {key!r} than {given.BASE}; {given.REAL_FIRST}. Each part is "
                "fused by itself then."
            )
    elif tensor.numel() > 1 and key.rpartition(".")[2] not in COUNTERS and not torch.equal(base, tensor):
        raise KeyMismatch(
            f"{name} has other numbers of {tensor.dtype} under {key!r} than {given.BASE}, and only floating-point ones "
            f"are fused. If the weights are quantised, {given.MERGE_FIRST}. If this is a buffer, give all models the "
            f"pretrained one's (fl.merge does, with keep=[{key!r}])."
        )


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def tied_names(state: StateDict) -> dict[str, str]:
    """Maps each repeated name to the first name of the very same tensor (same storage, offset and shape)."""
    seen: dict[tuple, str] = {}
    ties: dict[str, str] = {}
    for key, tensor in state.items():
        if tensor.numel() == 0 or not tensor.is_floating_point():
            continue
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        first = seen.setdefault(identity, key)
        if first != key:
            ties[key] = first
    return ties


def fused_names(state: StateDict) -> list[str]:
    """The names that a fusion computes: floating point, tied tensors once, in the state dict's order."""
    ties = tied_names(state)
    return [key for key, tensor in state.items() if tensor.is_floating_point() and key not in ties]


def num_parameters(state: StateDict) -> int:
    """How many floating-point numbers the state dict stores; tied tensors count once."""
    return sum(state[key].numel() for key in fused_names(state))


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to calculate in: float64 if any input is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


@dataclass(frozen=True)
class TaskVector:
    """A direction in weight space, so that the formulas read as in the papers.

    ``apply(pretrained, 0.3 * (task_vector(a, pretrained) + task_vector(b, pretrained)))``

    Attributes:
        delta: fine-tuned minus pretrained, floating-point entries only, float32 (or float64).
    """

    delta: StateDict

    def __add__(self, other: TaskVector) -> TaskVector:
        if self.delta.keys() != other.delta.keys():
            odd = sorted(self.delta.keys() ^ other.delta.keys())
            raise KeyMismatch(f"two task vectors with different keys cannot be added; they differ in {odd[:5]}.")
        return TaskVector({key: value + other.delta[key] for key, value in self.delta.items()})

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + -other

    def __mul__(self, scale: float) -> TaskVector:
        return TaskVector({key: value * scale for key, value in self.delta.items()})

    __rmul__ = __mul__

    def dot(self, other: TaskVector) -> float:
        """Inner product over all entries, accumulated in float64."""
        return sum(
            float(torch.dot(value.flatten().double(), other.delta[key].flatten().double()))
            for key, value in self.delta.items()
        )

    def norm(self) -> float:
        """Euclidean length."""
        return self.dot(self) ** 0.5

    def cosine(self, other: TaskVector) -> float:
        """Cosine of the angle to another task vector, in [-1, 1]; 0 if either is zero."""
        length = self.norm() * other.norm()
        return self.dot(other) / length if length else 0.0


@torch.no_grad()
def task_vector(finetuned: StateDict, pretrained: StateDict) -> TaskVector:
    """Fine-tuned minus pretrained; 0 for a constant, infinite ones included.

    Raises: KeyMismatch, if the two differ in keys or shapes, and whatever else ``check_compatible`` raises;
        NonFiniteError, if one of them holds NaN or Inf.
    """
    check_compatible(pretrained, [finetuned])
    delta = {}
    for key in fused_names(pretrained):
        dtype = compute_dtype(pretrained[key], finetuned[key])
        delta[key] = finetuned[key].to(dtype) - pretrained[key].to(dtype)
        if not probably_finite(delta[key]):
            if is_constant(key, pretrained, [finetuned]):
                delta[key].zero_()
                continue
            for name, state in ((given.BASE, pretrained), ("the fine-tuned model", finetuned)):
                check_finite(name, key, state[key])
    return TaskVector(delta)


@torch.no_grad()
def apply(pretrained: StateDict, vector: TaskVector) -> StateDict:
    """Pretrained plus the task vector: same keys, dtypes and ties as ``pretrained``, in new tensors.

    A point in weight space, which may be one on the way to a merge: variances below 0 are not looked for.

    Raises: KeyMismatch, if the vector was made for another architecture; NonFiniteError, from the sum.
    """
    given.check_state(given.BASE, pretrained)
    if set(fused_names(pretrained)) != vector.delta.keys():
        odd = sorted(set(fused_names(pretrained)) ^ vector.delta.keys())
        raise KeyMismatch(f"the task vector does not fit the pretrained model; the keys differ in {odd[:5]}.")
    ties = tied_names(pretrained)
    moved: StateDict = {}
    for key, base in pretrained.items():
        if key in ties:
            moved[key] = moved[ties[key]]
        elif key in vector.delta:
            delta = vector.delta[key]
            if delta.shape != base.shape:
                raise KeyMismatch(
                    f"the task vector has shape {tuple(delta.shape)} under {key!r}, {given.BASE} {tuple(base.shape)}."
                )
            moved[key] = (base.to(delta.dtype) + delta).to(base.dtype)
            if not probably_finite(moved[key]) and not torch.equal(moved[key], base):
                check_finite("the sum with the task vector", key, moved[key])
        else:
            moved[key] = base.clone()
    return moved
