"""Meters of dense prediction: an image's score is the share of its pixels that are right; errors are by the pixel.

Pixels without a truth are left out: label -1, depth 0, normal 0. Counts are (sum over images of the share of right
pixels, images), where images without any truth are left out; measurements pool the pixels of all images, as in the
literature on NYUv2 (Eigen and Fergus 2015; Liu et al. 2019).

An answer that is no number is wrong: it is no class, counts as depth 0, or as at right angles to the normal. Models
with BatchNorm give such answers where task vectors were added until a running variance is below 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusionlib.core import ParameterError

RATIO = 1.25  # a depth is right if it is within this factor
ANGLES = (11.25, 22.5, 30.0)  # degrees; a normal is right within the last
_BIN = 0.01  # degrees; the median angle is exact to half of it


class _Shares:
    """Sums the share of right pixels over images."""

    def __init__(self) -> None:
        self.score: Tensor | float = 0.0
        self.images: Tensor | int = 0

    def add(self, right: Tensor, known: Tensor) -> None:
        """Boolean masks (B, H, W): which pixels are right, of those that have a truth."""
        pixels = known.flatten(1).sum(dim=1)
        share = (right & known).flatten(1).sum(dim=1).double() / pixels.clamp(min=1)
        self.score = self.score + share.sum()
        self.images = self.images + (pixels > 0).sum()

    def count(self) -> tuple[float, int]:
        """(score, images); ParameterError, if no pixel of any image had a truth."""
        if not int(self.images):
            raise ParameterError("none of the images has a pixel with a truth, so there is nothing to measure.")
        return float(self.score), int(self.images)


class Segmentation:
    """Pixel accuracy and mean intersection over union."""

    def __init__(self) -> None:
        self._shares = _Shares()
        self._pairs: Tensor | int = 0

    def update(self, output: Tensor, labels: Tensor) -> None:
        """Logits (B, classes, H, W) and int64 labels (B, H, W), -1 where there is none."""
        classes, known = output.shape[1], labels >= 0
        # no class is one more column; argmax would make it the first class
        guess = output.argmax(dim=1).masked_fill(output.isnan().any(dim=1), classes)
        self._shares.add(guess == labels, known)
        pairs = labels[known] * (classes + 1) + guess[known]
        self._pairs = self._pairs + pairs.bincount(minlength=classes * (classes + 1)).view(classes, classes + 1)

    def result(self) -> tuple[tuple[float, int], dict[str, float]]:
        """Counts; "miou" over the classes that occur in truth or prediction, and "pixel_accuracy", in [0, 1]."""
        count = self._shares.count()
        assert isinstance(self._pairs, Tensor)
        pairs = self._pairs.double()
        both = pairs.diagonal()
        either = pairs[:, :-1].sum(dim=0) + pairs.sum(dim=1) - both
        miou = (both / either)[either > 0].mean()
        return count, {"miou": float(miou), "pixel_accuracy": float(both.sum() / pairs.sum())}


class Depth:
    """Absolute and relative error of depth."""

    def __init__(self) -> None:
        self._shares = _Shares()
        self._sums: Tensor | float = 0.0  # absolute error, relative error, right pixels, pixels

    def update(self, output: Tensor, labels: Tensor) -> None:
        """Depths (B, 1, H, W) in metres, and true ones, 0 where there is none."""
        known, truth = labels > 0, labels.double()
        output = torch.where(output.isfinite(), output, 0.0).double()
        error = (output - truth).abs()
        # a predicted depth of 0 or less has no ratio, and is wrong
        right = (torch.maximum(output / truth, truth / output) < RATIO) & (output > 0)
        self._shares.add(right[:, 0], known[:, 0])
        relative = (error / truth)[known]
        sums = [error[known].sum(), relative.sum(), (right & known).sum().double(), known.sum().double()]
        self._sums = self._sums + torch.stack(sums)

    def result(self) -> tuple[tuple[float, int], dict[str, float]]:
        """Counts; "abs_err" in metres, "rel_err" (absolute error over true depth), and "within_1.25", in [0, 1]."""
        count = self._shares.count()
        assert isinstance(self._sums, Tensor)
        absolute, relative, right, pixels = self._sums.tolist()
        measured = {"abs_err": absolute / pixels, "rel_err": relative / pixels, "within_1.25": right / pixels}
        return count, measured


class Normal:
    """Angles between predicted and true surface normals."""

    def __init__(self) -> None:
        self._shares = _Shares()
        self._angles: Tensor | int = 0  # a histogram: the median needs no more
        self._sum: Tensor | float = 0.0
        self._within: Tensor | int = 0

    def update(self, output: Tensor, labels: Tensor) -> None:
        """Vectors (B, 3, H, W) of any length, and true unit ones, 0 where there is none."""
        known = labels.abs().sum(dim=1) > 0
        one, other = output.double(), labels.double()
        # of two vectors that are nearly parallel, the arc tangent of sine and cosine is exact, the arc cosine is not
        sine = torch.linalg.cross(one, other, dim=1).norm(dim=1)
        angle = torch.atan2(sine, (one * other).sum(dim=1)).rad2deg()
        angle = torch.where(one.isfinite().all(dim=1) & one.any(dim=1), angle, 90.0)  # else it has no direction
        self._shares.add(angle <= ANGLES[-1], known)
        found = angle[known]
        self._sum = self._sum + found.sum()
        self._within = self._within + torch.stack([(found <= limit).sum() for limit in ANGLES])
        self._angles = self._angles + (found / _BIN).long().bincount(minlength=round(180 / _BIN) + 1)

    def result(self) -> tuple[tuple[float, int], dict[str, float]]:
        """Counts; "mean_angle" and "median_angle" in degrees, "within_11.25", "within_22.5", "within_30"."""
        count = self._shares.count()
        assert isinstance(self._angles, Tensor) and isinstance(self._within, Tensor)
        pixels = int(self._angles.sum())
        middle = int((self._angles.cumsum(0) * 2 >= pixels).nonzero()[0])
        shares = {f"within_{limit:g}": int(n) / pixels for limit, n in zip(ANGLES, self._within, strict=True)}
        measured = {"mean_angle": float(self._sum) / pixels, "median_angle": (middle + 0.5) * _BIN}
        return count, {**measured, **shares}
