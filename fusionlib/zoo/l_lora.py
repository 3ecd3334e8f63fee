"""tiny-clip linearised in the parameters of a LoRA: the backbone of L-LoRA suites, whose states are adapters."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import StateDict
from fusionlib.ops.linearized import Linearized, names_with
from fusionlib.zoo.adapters import read_adapter, wrap
from fusionlib.zoo.backbone import ClipBackbone
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.weights import check_keys

START_SEED = 0  # one start for all tasks and seeds: task vectors of a linearisation add up only around one point
_SLOT = ".default"  # PEFT's name for the adapter in a module; it leaves it out in files


@dataclass(frozen=True, kw_only=True)
class LinearizedClip(ClipBackbone):
    """A CLIP backbone under LoRA, linearised in the adapter. ``state`` is where the adapter starts, B = 0.

    Attributes:
        plain: the backbone below the adapter.
        recipe: says rank, alpha and targets.
    """

    plain: ClipBackbone = field(repr=False)
    recipe: Recipe = field(repr=False)

    @property
    def weights(self) -> StateDict:
        """The adapter's start and the weights below it."""
        return {**self.plain.state, **self.state}

    def module(self) -> nn.Module:
        """A new linearisation, at its start."""
        adapted = self._adapted()
        return Linearized(adapted, _theta(adapted))

    def as_peft(self, model: nn.Module) -> Any:
        """A PEFT model that holds the adapter of a linearisation, to be saved; what it computes is not the same."""
        adapted = self._adapted()
        adapted.load_state_dict({**adapted.state_dict(), **model.state_dict()})
        return adapted

    def read(self, folder: Path) -> StateDict:
        """The adapter in a folder, under the names of ``state``.

        Raises: CheckpointError, KeyMismatch.
        """
        found = {_with_slot(name): value.float() for name, value in read_adapter(folder).items()}
        check_keys(found, self.state, str(folder))
        return {name: found[name] for name in self.state}

    def _adapted(self) -> Any:
        from peft import LoraConfig

        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(START_SEED)
            config = LoraConfig(r=recipe.rank or 1, lora_alpha=recipe.alpha, target_modules=list(recipe.targets))
            return wrap(self.plain.build(), config)


def linearized(plain: ClipBackbone, recipe: Recipe) -> LinearizedClip:
    """The backbone of L-LoRA on another one."""
    given = {each.name: getattr(plain, each.name) for each in fields(plain)}
    bare = LinearizedClip(**given, plain=plain, recipe=recipe)
    return replace(bare, state={name: value.detach() for name, value in bare.module().state_dict().items()})


def _theta(adapted: nn.Module) -> list[str]:
    return names_with(adapted, lambda name: "lora_" in name)


def _with_slot(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}{_SLOT}.{last}"
