"""Encoders of dense prediction with a decoder per task, and the one that ships with the package, tiny-nyu."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusionlib.core import ParameterError, StateDict
from fusionlib.zoo.backbone import Backbone, GivenHead
from fusionlib.zoo.decoder import CHANNELS, RATES, DenseHead
from fusionlib.zoo.files import SCENES, hash_file
from fusionlib.zoo.heads import check_finite, read_head_state
from fusionlib.zoo.resnet import DilatedResNet, ResNetConfig
from fusionlib.zoo.scenes import Scenes
from fusionlib.zoo.task import Task
from fusionlib.zoo.weights import check_keys, like, read_config, read_tensors, read_weights

BASE = SCENES / "tiny-nyu"
TINY_CHANNELS, TINY_RATES = 48, (1, 2, 3)


@dataclass(frozen=True)
class DenseBackbone(Backbone):
    """A ``DilatedResNet``; each fine-tune trains a decoder of its own, which is kept and never fused.

    Attributes:
        channels: inside a decoder.
        rates: dilations of a decoder's pyramid.
        dropout: probability of dropout in a decoder's training.
    """

    learns_heads: ClassVar[bool] = True

    channels: int = CHANNELS
    rates: tuple[int, ...] = field(default=RATES)
    dropout: float = 0.5

    @property
    def dim(self) -> int:
        """Channels of the features."""
        return self.config.dim

    def module(self) -> nn.Module:
        """A new encoder, with whatever weights."""
        return DilatedResNet(self.config)

    def head(self, task: Task, given: GivenHead) -> nn.Module:
        """A decoder with these tensors, or with those in this file, in evaluation mode.

        Raises: ParameterError, if nothing is given, or a single tensor; KeyMismatch; CheckpointError.
        """
        if given is None or isinstance(given, Tensor):
            raise ParameterError(
                f"there is no head for task {task.name!r}: decoders of {self.name} are trained with the fine-tunes. "
                f'Use tuning="full", or pass heads={{{task.name!r}: all its tensors by name, or a .safetensors path}}.'
            )
        state = _tensors(given, task)
        decoder = self._decoder(task)
        check_keys(state, decoder.state_dict(), f"the head of task {task.name!r}")
        check_finite(state, task)
        decoder.load_state_dict(state)
        return decoder.requires_grad_(False).eval()

    def start_head(self, task: Task, seed: int) -> nn.Module:
        """A decoder with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._decoder(task)

    def _decoder(self, task: Task) -> DenseHead:
        outputs = {"segmentation": len(task.classes), "depth": 1, "normal": 3}
        return DenseHead(
            self.dim,
            outputs[task.metric],
            channels=self.channels,
            rates=self.rates,
            dropout=self.dropout,
            unit=task.metric == "normal",
        )


def resnet50_state(weights: str | PathLike[str], config: ResNetConfig | None = None) -> StateDict:
    """The encoder's weights in a file of torchvision's ``resnet50``, whose classifier is left out.

    Args:
        config: of another shape.

    Raises: CheckpointError, KeyMismatch.
    """
    found = {name: value for name, value in read_tensors(Path(weights)).items() if not name.startswith("fc.")}
    with torch.device("meta"):
        wanted = DilatedResNet(config or ResNetConfig()).state_dict()
    check_keys(found, wanted, str(weights))
    return like(found, wanted)


def tiny_nyu() -> DenseBackbone:
    """The encoder that ships with the package: 506,384 parameters, 48 x 64 pictures, 512 channels at 6 x 8 places."""
    facts = read_config(BASE)
    config = ResNetConfig(tuple(facts["blocks"]), facts["width"], facts["output_stride"])
    state = read_weights(BASE)
    return DenseBackbone(
        name="tiny-nyu",
        config=config,
        state=like(state, state),
        preprocess=Scenes(48, 64),
        channels=TINY_CHANNELS,
        rates=TINY_RATES,
        dropout=0.0,
    )


@functools.cache
def tiny_nyu_hash() -> str:
    """Hash of what the fine-tunes of tiny-nyu start from."""
    return hash_file(BASE / "model.safetensors")


def _tensors(given: Mapping[str, Tensor] | str | PathLike[str], task: Task) -> Mapping[str, Tensor]:
    if isinstance(given, Mapping):
        return given
    return read_head_state(Path(given).expanduser(), task.name)
