"""What open_clip does to a picture before its model sees it, pixel for pixel, without torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError
from fusionlib.zoo.inputs import Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

# open_clip's defaults, for what a configuration leaves out
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_INTERPOLATIONS = {"bicubic": 3, "bilinear": 2}  # PIL's numbers
_MODES = ("shortest", "squash")


@dataclass(frozen=True)
class OpenClipPreprocess(Preprocess):
    """As its parent, but as torchvision does it: colours are converted last, and the crop's corner is rounded.

    Pictures of odd sizes come out one pixel further down or to the right than transformers' processor has them.
    """

    @property
    def cache_key(self) -> tuple:
        """What decides the pixels: the parent's, and that it is this class that makes them."""
        return (*super().cache_key, "openclip")

    def pixels(self, image: Image) -> Tensor:
        """One picture of any mode and size as uint8, shape (3, height, width)."""
        import numpy as np

        size = self.resized(image.width, image.height)
        if image.size != size:
            image = image.resize(size, self.resample)
        left, top = round((image.width - self.width) / 2), round((image.height - self.height) / 2)
        image = image.crop((left, top, left + self.width, top + self.height)).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_preprocess(facts: Mapping[str, Any], size: int, where: str) -> Preprocess:
    """The preprocessing that ``preprocess_cfg`` asks for.

    Args:
        facts: with any of ``mean``, ``std``, ``interpolation``, ``resize_mode``; ``size`` is the model's own, as in
            open_clip.
        size: side of the model's pictures, pixels.

    Raises: CheckpointError for what is not supported.
    """
    interpolation, mode = facts.get("interpolation") or "bicubic", facts.get("resize_mode") or "shortest"
    if interpolation not in _INTERPOLATIONS or mode not in _MODES:
        raise CheckpointError(
            f"{where} asks for interpolation {interpolation!r} and resize_mode {mode!r}. Supported: "
            f"{' or '.join(_INTERPOLATIONS)}; {' or '.join(_MODES)}."
        )
    return OpenClipPreprocess(
        height=size,
        width=size,
        shortest_edge=None if mode == "squash" else size,
        resample=_INTERPOLATIONS[interpolation],
        mean=tuple(facts.get("mean") or _MEAN),
        std=tuple(facts.get("std") or _STD),
    )
