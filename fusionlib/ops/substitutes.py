"""Modules that a mix puts where others stood, such as a mixture of experts in the place of an MLP.

A substitute can say in JSON how it is built, so that a mixed model is saved as the original architecture, a
list of what was replaced, and weights; no code is stored (see ``fusionlib.bench.saving``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn


class Substitute(nn.Module):
    """Base of all modules that stand where another module stood."""

    def structure(self) -> dict[str, Any]:
        """What ``rebuild`` needs besides the original module: JSON values."""
        raise NotImplementedError

    @classmethod
    def rebuild(cls, original: nn.Module, structure: Mapping[str, Any]) -> Substitute:
        """A substitute of this structure for ``original``; its weights are to be loaded afterwards."""
        raise NotImplementedError

    def num_active(self) -> int:
        """How many of its parameters one input reads."""
        return sum(parameter.numel() for parameter in self.parameters())

    def joined(self, model: nn.Module) -> None:
        """Called when it has taken its place in a model; by default does nothing."""


def with_substitutes(model: nn.Module, substitutes: Mapping[str, Substitute]) -> nn.Module:
    """A deep copy of the model in which these submodules are replaced, in evaluation mode.

    Its attribute ``active_parameters`` says how many numbers one input reads.
    """
    mixed = copy.deepcopy(model)
    for name, substitute in substitutes.items():
        mixed.set_submodule(name, substitute)
    stored = sum(parameter.numel() for parameter in mixed.parameters())
    idle = sum(sum(p.numel() for p in found.parameters()) - found.num_active() for found in substitutes.values())
    mixed.active_parameters = stored - idle  # type: ignore[assignment]
    for found in substitutes.values():
        found.joined(mixed)
    return mixed.eval()


def substitutes_of(model: nn.Module) -> dict[str, Substitute]:
    """The substitutes in a model, by name; empty for an ordinary architecture."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Substitute)}
