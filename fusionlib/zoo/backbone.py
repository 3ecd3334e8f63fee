"""A backbone: the image encoder's architecture, its pretrained weights, and what it wants its pictures to be."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from fusionlib.core import StateDict
from fusionlib.zoo.files import DATA, hash_file
from fusionlib.zoo.inputs import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

    from fusionlib.zoo.text_tower import TextTower

BICUBIC = 3


@dataclass(frozen=True)
class Backbone:
    """A CLIP-like vision tower with projection.

    Attributes:
        name: as the user asked for it.
        config: of ``CLIPVisionModelWithProjection``.
        state: the pretrained weights, float32, on the CPU.
        preprocess: what it does to a picture.
        logit_scale: factor on the cosines of its heads.
        text_tower: reads the text tower, if one came with it.
    """

    name: str
    config: CLIPVisionConfig = field(repr=False)
    state: StateDict = field(repr=False)
    preprocess: Preprocess
    logit_scale: float
    text_tower: Callable[[], TextTower] | None = field(default=None, repr=False)

    @property
    def dim(self) -> int:
        """Number of features, the width of the projection."""
        return self.config.projection_dim

    def build(self, state: StateDict | None = None) -> nn.Module:
        """A new module with these weights (the pretrained ones if None), in evaluation mode, on the CPU."""
        from transformers import CLIPVisionModelWithProjection

        with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten at once
            model = CLIPVisionModelWithProjection(self.config)
        model.load_state_dict(self.state if state is None else state)
        return model.eval()


def tiny_clip() -> Backbone:
    """The backbone that ships with the package: 869,632 parameters, 32 x 32 pictures, 384 features."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig

    facts = json.loads((DATA / "config.json").read_text())
    config = CLIPVisionConfig.from_dict({**facts, "dtype": "float32"})
    size = facts["image_size"]
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])
    return Backbone(
        name="tiny-clip",
        config=config,
        state={name: tensor.float() for name, tensor in load_file(DATA / "base.safetensors").items()},
        preprocess=Preprocess(size, size, size, BICUBIC, mean, std),
        logit_scale=facts["logit_scale"],
    )


@functools.cache
def tiny_clip_hash() -> str:
    """Hash of what the fine-tunes of tiny-clip start from: base weights and heads."""
    return hash_file(DATA / "base.safetensors")[:32] + hash_file(DATA / "heads.safetensors")[:32]
