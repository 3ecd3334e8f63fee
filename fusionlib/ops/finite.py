"""NaN and Inf: which inputs may hold them, and that no result does.

What is infinite and the same in all models is a constant, such as a causal mask, and is taken as it is. Everything
else that is not finite is an error that names the model and the key. Healthy models are only summed, a stretch at a
time and just after it was written, so that no pass over memory is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fusionlib.core import NonFiniteError, StateDict
from fusionlib.ops.given import BASE, name_of


def probably_finite(values: Tensor) -> bool:
    """Whether a sum is finite, which is cheap for numbers that were just written. Where not, look closely."""
    # NaN and Inf survive a sum; so may large numbers.
    half = values.dtype in (torch.float16, torch.bfloat16)
    return math.isfinite(values.detach().sum(dtype=torch.float32 if half else None).item())


def check_finite(model: str, name: str, tensor: Tensor) -> None:
    """Raises NonFiniteError with the model, the key and the count, if the tensor holds NaN or Inf."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = tensor.numel() - int(finite.sum())
        raise NonFiniteError(
            f"{model} has {bad} of {tensor.numel()} values that are NaN or Inf under {name!r}; "
            "no fusion of it can be right. Check the checkpoint, or fine-tune it again."
        )


def is_constant(key: str, pretrained: StateDict, finetuned: Sequence[StateDict]) -> bool:
    """Whether an entry holds the same numbers in all models, infinite ones maybe, and no NaN."""
    base = pretrained[key].detach()
    return torch.equal(base, base) and all(torch.equal(base, state[key].detach()) for state in finetuned)


def check_inputs_finite(pretrained: StateDict, finetuned: Sequence[StateDict]) -> None:
    """Raises NonFiniteError, naming model and key, if an input holds NaN or Inf and is no constant."""
    for _, state in named(pretrained, finetuned):
        for key, tensor in state.items():
            if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
                continue
            if not is_constant(key, pretrained, finetuned):
                check_entry(key, pretrained, finetuned)


def check_entry(key: str, pretrained: StateDict, finetuned: Sequence[StateDict]) -> None:
    """Raises NonFiniteError, naming the model, if an entry that is no constant holds NaN or Inf in one."""
    base = pretrained[key].detach()
    same = [torch.equal(base, state[key].detach()) for state in finetuned]
    if any(same) and not all(same) and bool(torch.isinf(base).any()):  # then another model is the odd one
        odd = name_of(same.index(False))
        raise NonFiniteError(
            f"{odd} has other values than {BASE} under {key!r}, some of which are infinite; only what is the same in "
            "all models may hold NaN or Inf. Check the checkpoint."
        )
    for model, state in named(pretrained, finetuned):
        check_finite(model, key, state[key])


def named(pretrained: StateDict, finetuned: Sequence[StateDict]) -> list[tuple[str, StateDict]]:
    """All models with the names that errors call them."""
    return [(BASE, pretrained), *((name_of(index), state) for index, state in enumerate(finetuned))]


def check_module_finite(model: str, module: nn.Module) -> None:
    """The same of a model alone; what nobody trains, buffers and frozen parameters, may be infinite."""
    for key, tensor in _not_finite(module):
        if tensor.requires_grad or bool(tensor.isnan().any()):
            check_finite(model, key, tensor.detach())


def check_module_result(module: nn.Module, pretrained: nn.Module) -> None:
    """Raises NonFiniteError, naming the tensor, if a module that a fusion made holds NaN, or Inf but in constants.

    Constants are buffers, and parameters that are as in the pretrained model.
    """
    before = dict(pretrained.named_parameters())
    for key, tensor in _not_finite(module):
        kept = not isinstance(tensor, nn.Parameter) or (key in before and torch.equal(before[key], tensor))
        if not kept or bool(tensor.isnan().any()):
            raise overflow(key, tensor.dtype)


def _not_finite(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and not probably_finite(tensor) and not bool(torch.isfinite(tensor).all()):
            yield key, tensor


def check_result(fused: StateDict, pretrained: StateDict) -> None:
    """Raises NonFiniteError, naming the key, if a fused entry holds NaN or Inf and is not a constant."""
    for key, tensor in fused.items():
        if not tensor.is_floating_point() or probably_finite(tensor) or bool(torch.isfinite(tensor).all()):
            continue
        base = pretrained.get(key)
        if base is None or not torch.equal(tensor, base):
            raise overflow(key, tensor.dtype)


def overflow(name: str, dtype: torch.dtype) -> NonFiniteError:
    """What to say of a result that is not finite though its inputs are."""
    return NonFiniteError(
        f"the fused values of {name!r} overflow {dtype} though all inputs are finite; use smaller hyper-parameters, "
        "such as the scale, or convert the models to float32 or bfloat16 first."
    )
