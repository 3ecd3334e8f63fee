"""Tied weights under an adapter: merging may change a tensor of two names only where both change in the same way."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from fusionlib.core import CheckpointError


def untie(module: nn.Module, touched: Collection[str]) -> list[list[str]]:
    """Give each name of a tied parameter a tensor of its own, so that what is merged into one does not reach another.

    Args:
        touched: modules that an adapter changes; parameters that none of them has stay tied.
    Returns: the names of each parameter that was untied.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    ties = [tie for tie in names.values() if len(tie) > 1 and any(_owner(name) in touched for name in tie)]
    for tie in ties:
        for name in tie[1:]:
            _set(module, name, nn.Parameter(module.get_parameter(name).detach().clone(), requires_grad=False))
    return ties


def tie_again(module: nn.Module, ties: list[list[str]], folder: Path) -> None:
    """Make one tensor of each again; CheckpointError, if the adapter in ``folder`` changed its names differently."""
    for first, *others in ties:
        tensor = module.get_parameter(first)
        for name in others:
            other = module.get_parameter(name)
            if other.shape != tensor.shape or not torch.allclose(other, tensor, rtol=1e-5, atol=1e-6):
                raise CheckpointError(
                    f"the adapter in {folder} changes {first} and {name} in different ways, but in the pretrained "
                    "model they are one tensor (tie_word_embeddings), so merging one would change the other. Untie "
                    "them in the pretrained model first (load it with tie_word_embeddings=False, copy the embedding "
                    "to the head, save it), or train the adapter without them or with ensure_weight_tying=True."
                )
            _set(module, name, tensor)


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    setattr(module.get_submodule(_owner(name)), name.rpartition(".")[2], parameter)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
