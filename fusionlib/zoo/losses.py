"""What a fine-tune of a task minimises, by what is measured on the task; pixels without a truth count nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from fusionlib.zoo.task import Task

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

UNKNOWN = -1  # the label of a pixel without a class


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (B, classes, H, W) against int64 (B, H, W), pixels of label -1 left out."""
    known = (labels != UNKNOWN).sum().clamp(min=1)
    return nn.functional.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum") / known


def depth_loss(depth: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of (B, 1, H, W) metres, pixels whose true depth is 0 left out."""
    known = truth > 0
    return ((depth - truth).abs() * known).sum() / known.sum().clamp(min=1)


def normal_loss(normal: Tensor, truth: Tensor) -> Tensor:
    """Mean of 1 - cosine of unit vectors (B, 3, H, W), pixels whose true normal is 0 left out."""
    known = truth.abs().sum(dim=1) > 0
    return ((1 - (normal * truth).sum(dim=1)) * known).sum() / known.sum().clamp(min=1)


_BY_METRIC: dict[str, Loss] = {"segmentation": segmentation_loss, "depth": depth_loss, "normal": normal_loss}


def loss_of(task: Task) -> Loss:
    """The loss of a task: cross-entropy of its classes unless it is a task of dense prediction."""
    return _BY_METRIC.get(task.metric, nn.functional.cross_entropy)
