"""Decoders of dense prediction: features at several scales, then one answer per pixel. Heads: kept, never fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

RATES = (12, 24, 36)
CHANNELS = 256


class DenseHead(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017), a 3 x 3 convolution, and ``outputs`` numbers per pixel.

    As used on NYUv2 by Liu et al. 2019 and LibMTL: one such decoder per task on a shared dilated ResNet-50.

    Args:
        dim: channels of the encoder's features.
        outputs: classes of segmentation, 1 for depth, 3 for normals.
        channels: inside the decoder.
        rates: dilations of the pyramid's 3 x 3 convolutions.
        dropout: probability of dropout before the last convolutions, in training.
        unit: give vectors of length 1 along the channels, for normals.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        channels: int = CHANNELS,
        rates: Sequence[int] = RATES,
        dropout: float = 0.5,
        unit: bool = False,
    ):
        super().__init__()
        self.unit = unit
        branches = [_block(dim, channels, 1, 1), *(_block(dim, channels, 3, rate) for rate in rates)]
        self.branches = nn.ModuleList(branches)
        self.pooled = _block(dim, channels, 1, 1)
        self.project = nn.Sequential(_block(channels * (len(rates) + 2), channels, 1, 1), nn.Dropout(dropout))
        self.refine = _block(channels, channels, 3, 1)
        self.answer = nn.Conv2d(channels, outputs, 1)

    def forward(self, features: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, dim, h, w) and their batch, for the size (H, W) of its pictures, to (B, outputs, H, W)."""
        everywhere = self.pooled(features.mean(dim=(-2, -1), keepdim=True)).expand(-1, -1, *features.shape[-2:])
        scales = torch.cat([*(branch(features) for branch in self.branches), everywhere], dim=1)
        answer = self.answer(self.refine(self.project(scales)))
        size = batch["pixel_values"].shape[-2:]
        answer = nn.functional.interpolate(answer, size=size, mode="bilinear", align_corners=False)
        return nn.functional.normalize(answer, dim=1) if self.unit else answer


def _block(inputs: int, outputs: int, size: int, rate: int) -> nn.Sequential:
    padding = rate if size == 3 else 0
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=padding, dilation=rate, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
