"""A module linearised in some of its parameters: its first-order Taylor expansion around where they start."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusionlib.core import KeyMismatch, ParameterError, StateDict, suggest
from fusionlib.ops.modules import output_tensor, tensors_of, with_tensors


class Linearized(nn.Module):
    """The module x -> f(x; start) + J(x; start) (theta - start), J the Jacobian of f in the named parameters.

    Its parameters and its state dict are theta alone, under the names they have in the module, so fusing and
    training act on theta; everything else is held beside it and moves along with ``to``. Value and directional
    derivative come from one pass of forward-mode differentiation, without fused attention: about four times an
    ordinary forward, three times one with backward (benchmarks/linearized.py).

    Args:
        module: f; it is not changed, and its tensors are shared until one of the two is moved or trained.
        names: of the parameters that are theta, such as those of LoRA adapters.
        start: their values at the point of expansion; the module's own if absent.
    Raises: ParameterError, for no or unknown names; KeyMismatch, if ``start`` does not fit them.

    Source: Tang et al. 2023, "Parameter-efficient multi-task model fusion with partial linearization", eq. 5.
    Deviates: the authors' code, and the adapters they published, linearise every LoRA layer by itself; see
        :func:`linearize_layers`.
    """

    def __init__(self, module: nn.Module, names: Iterable[str], start: Mapping[str, Tensor] | None = None):
        super().__init__()
        chosen = tuple(names)
        parameters = dict(module.named_parameters())
        _check_names(chosen, parameters)
        begins = {name: parameters[name] for name in chosen} if start is None else dict(start)
        _check_start(begins, {name: parameters[name] for name in chosen})
        self._chosen = chosen
        self._kept: dict[str, str] = {}
        for name in chosen:
            self.register_buffer(_slot("start", name), begins[name].detach().clone(), persistent=False)
            _plant(self, name, nn.Parameter(parameters[name].detach().clone()))
        for name, tensor in tensors_of(module).items():
            if name not in chosen:
                self._kept[name] = _slot("kept", name)
                self.register_buffer(self._kept[name], tensor.detach(), persistent=False)
        # In a list, so that it is no submodule: it has a structure and no weights.
        self._skeleton = [with_tensors(module, lambda _, tensor: tensor.to("meta"))]

    @property
    def start(self) -> StateDict:
        """The point of expansion: the value of every parameter in ``names`` there."""
        return {name: getattr(self, _slot("start", name)) for name in self._chosen}

    @property
    def stored_parameters(self) -> int:
        """How many numbers must be kept to use it: those of theta, of the start, and of the rest of the module."""
        return sum(p.numel() for p in self.parameters()) + sum(b.numel() for b in self.buffers())

    def train(self, mode: bool = True) -> Linearized:
        """As every module's; dropout draws one mask for the value and the derivative."""
        super().train(mode)
        self._skeleton[0].train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The expansion of the module's output tensor (see ``output_tensor``); its arguments are the module's."""
        start, kept = self.start, {name: getattr(self, slot) for name, slot in self._kept.items()}
        step = {name: _theta(self, name) - value for name, value in start.items()}

        def value(theta: StateDict) -> Tensor:
            return output_tensor(functional_call(self._skeleton[0], {**kept, **theta}, args, kwargs))

        _load_rules()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward-mode derivative
            found = jvp(value, (start,), (step,))
        return found[0] + found[1]


def linearize_layers(
    model: nn.Module, layers: Mapping[str, Sequence[str]], start: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy of the model in which each of these layers is linearised by itself; what is between stays as it was.

    Where a layer is linear in each of its parameters, as LoRA's W + s B A is, so is the result: with B = 0 at the
    start, the layer becomes W + s B A_start, which is an ordinary linear layer of those weights.

    Args:
        layers: name of a submodule -> names of its parameters, below it.
        start: values at the point of expansion under their full names; those not there start where they are.
    Raises: ParameterError, KeyMismatch.
    """
    known = dict(model.named_modules())
    changed = copy.deepcopy(model)
    for name, parameters in layers.items():
        if name not in known:
            raise ParameterError(f"the model has no submodule {name!r}.{suggest(name, list(known)[:20])}")
        own = dict(known[name].named_parameters())
        begins = {key: (start or {}).get(f"{name}.{key}", own[key]) for key in parameters if key in own}
        changed.set_submodule(name, Linearized(known[name], parameters, begins))
    return changed


def names_with(module: nn.Module, chosen: Callable[[str], bool]) -> list[str]:
    """Names of the parameters that ``chosen`` says yes to: ``names_with(model, lambda name: "lora_" in name)``."""
    return [name for name, _ in module.named_parameters() if chosen(name)]


@functools.cache
def _load_rules() -> None:
    """Let torch load its rules for forward mode, which it does at the first use, with a warning about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def _slot(kind: str, name: str) -> str:
    return f"{kind}/{name.replace('.', '/')}"


def _theta(root: nn.Module, name: str) -> Tensor:
    """What stands under a parameter's name, be it a plain tensor that ``functional_call`` has put in its place."""
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)


def _plant(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, with empty modules on the way to it."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, parameter)


def _check_names(names: tuple[str, ...], parameters: Mapping[str, Tensor]) -> None:
    if not names:
        raise ParameterError("no parameter to linearise in was named; name some, such as those of an adapter.")
    for name in names:
        if name not in parameters:
            raise ParameterError(f"the module has no parameter {name!r}.{suggest(name, list(parameters)[:20])}")


def _check_start(start: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    odd = sorted(start.keys() ^ wanted.keys())
    odd += [name for name in wanted if name in start and start[name].shape != wanted[name].shape]
    if odd:
        raise KeyMismatch(
            f"start must hold exactly the {len(wanted)} named parameters, in their shapes; it differs in "
            f"{', '.join(odd[:5])}."
        )
