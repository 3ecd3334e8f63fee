"""What a fusion was given: state dicts or modules, in a list, of tensors that hold the weights themselves.

Looks at types, dtypes and names only, never at numbers, so that it costs no pass over the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fusionlib.core import NotApplicable, ParameterError, StateDict

BASE = "the pretrained model"
MERGE_FIRST = "merge before quantising: fuse the models in float32, float16 or bfloat16, and quantise the result"
REAL_FIRST = (
    "methods elect signs and rank magnitudes, which only real numbers have: give torch.view_as_real of complex ones, "
    "and turn the result back with torch.view_as_complex"
)
_FUSED = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_KEPT = frozenset(
    {torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32}
    | {torch.int64, torch.complex32, torch.complex64, torch.complex128}
)
_PLAIN = frozenset({Tensor, nn.Parameter})


def name_of(index: int) -> str:
    """What errors call a fine-tuned model."""
    return f"finetuned[{index}]"


def check_listed(finetuned: Any, what: str = "state dicts") -> None:
    """Raises ParameterError unless the fine-tuned models come in a list, a tuple or another ordered collection."""
    wanted = f"pass a list of {what}, one for each fine-tuned model"
    if isinstance(finetuned, Mapping):
        one = not finetuned or any(isinstance(value, Tensor) for value in finetuned.values())
        hint = "for one model alone [finetuned]" if one else "list(finetuned.values())"
        raise ParameterError(f"finetuned is {'one state dict' if one else 'a dict of models'}; {wanted}: {hint}.")
    if isinstance(finetuned, nn.ModuleList) and what == "modules":
        return
    if isinstance(finetuned, nn.Module):
        raise ParameterError(f"finetuned is one module ({type(finetuned).__name__}); {wanted}.")
    if isinstance(finetuned, Iterator):
        raise ParameterError(
            f"finetuned can be read once only ({type(finetuned).__name__}); {wanted}: list(finetuned)."
        )
    if isinstance(finetuned, str | bytes | PathLike):
        raise ParameterError(f"finetuned is {finetuned!r}; {wanted}, or folders to fl.merge.")
    if isinstance(finetuned, Set | Tensor) or not isinstance(finetuned, Collection):
        raise ParameterError(f"finetuned is of type {type(finetuned).__name__}; {wanted}, in their order.")


def num_models(finetuned: Sequence[Any], what: str = "state dicts") -> int:
    """How many fine-tuned models were given. Raises ParameterError, if they are in no list, or none."""
    check_listed(finetuned, what)
    if len(finetuned) == 0:
        raise ParameterError(f"there is nothing to fuse: `finetuned` is empty; pass at least one of {what}.")
    return len(finetuned)


def check_module(name: str, model: Any) -> None:
    """Raises ParameterError unless it is a module."""
    if isinstance(model, nn.Module):
        return
    given = "a state dict" if isinstance(model, Mapping) else f"of type {type(model).__name__}"
    raise ParameterError(
        f"{name} is {given}, and this method needs a module, a model that runs: give the model itself, into which "
        "model.load_state_dict puts weights."
    )


def check_modules(pretrained: Any, finetuned: Any) -> None:
    """Raises ParameterError unless a module and a list of at least one module were given."""
    check_module(BASE, pretrained)
    num_models(finetuned, "modules")
    for index, model in enumerate(finetuned):
        check_module(name_of(index), model)


def check_state(name: str, state: Any) -> None:
    """Refuses what is no state dict, and tensors whose numbers cannot be averaged.

    Raises: ParameterError, NotApplicable, naming the model, the key and the way out.
    """
    if isinstance(state, nn.Module):
        raise ParameterError(
            f"{name} is a module ({type(state).__name__}), and this method fuses state dicts: pass model.state_dict()."
        )
    if not isinstance(state, Mapping):
        given = repr(state) if isinstance(state, str | PathLike) else f"of type {type(state).__name__}"
        raise ParameterError(
            f"{name} is {given}, and a state dict is needed, which maps names to tensors, such as model.state_dict(); "
            "a file is read by safetensors.torch.load_file, and folders are merged by fl.merge."
        )
    for key, tensor in state.items():
        if type(key) is not str and not isinstance(key, str):
            raise ParameterError(f"{name} has the key {key!r}, of type {type(key).__name__}; keys must be strings.")
        plain = type(tensor) in _PLAIN and tensor.dtype in _FUSED and tensor.layout is torch.strided
        if not plain or tensor.is_meta or tensor.is_nested:
            _check_tensor(name, key, tensor)


def check_something(pretrained: StateDict) -> None:
    """Raises NotApplicable, if the (checked) state dict holds no floating-point entry."""
    if not pretrained:
        raise ParameterError(f"{BASE} is an empty state dict, so there is nothing to fuse; pass model.state_dict().")
    if not any(tensor.is_floating_point() for tensor in pretrained.values()):
        dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in pretrained.values()}))
        first = ", ".join(repr(key) for key in list(pretrained)[:3]) + (", ..." if len(pretrained) > 3 else "")
        advice = REAL_FIRST if any(tensor.is_complex() for tensor in pretrained.values()) else MERGE_FIRST
        raise NotApplicable(
            f"{BASE} holds no real floating-point numbers ({len(pretrained)} entries, {first}, "
            f"all of {dtypes}), so there is nothing to fuse; {advice}."
        )


def _check_tensor(name: str, key: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ParameterError(
            f"{name} has no tensor under {key!r}, but a {type(tensor).__name__}; leave out whatever is no tensor."
        )
    kind = type(tensor).__name__
    if is_lazy(tensor):
        raise ParameterError(f"{name} has an uninitialised tensor under {key!r}; run the model once on an input first.")
    if getattr(type(tensor), "__torch_dispatch__", None) is not getattr(Tensor, "__torch_dispatch__", None):
        raise NotApplicable(
            f"{name} has a {kind} under {key!r}, a tensor that keeps its numbers in a form of its own. Make it plain "
            f"first: full_tensor() of a distributed one; of a quantised one, {MERGE_FIRST}."
        )
    if tensor.is_meta:
        raise ParameterError(
            f"{name} has a tensor without numbers under {key!r} (device meta); materialise it first: load its weights."
        )
    if tensor.is_nested:
        raise NotApplicable(
            f"{name} has a nested tensor under {key!r}; give ordinary ones: torch.nested.to_padded_tensor, or unbind()."
        )
    if tensor.layout is not torch.strided:
        raise NotApplicable(f"{name} has a tensor of layout {tensor.layout} under {key!r}; use .to_dense() first.")
    quantised = tensor.is_quantized or kind in ("Params4bit", "Int8Params")
    if quantised or not (tensor.is_floating_point() or tensor.dtype in _KEPT):
        raise NotApplicable(f"{name} has a quantised tensor ({tensor.dtype}) under {key!r}; {MERGE_FIRST}.")
    if tensor.is_floating_point() and tensor.dtype not in _FUSED:
        raise NotApplicable(
            f"{name} has numbers of {tensor.dtype} under {key!r}, too coarse to calculate with, and often of use only "
            f"with scales beside them; {MERGE_FIRST}."
        )
