"""Preprocessing of a user's backbone, read from the image processor's settings that were saved with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.core import CheckpointError
from fusionlib.zoo.inputs import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

# what CLIP's image processor does where its settings say nothing
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3


def read_preprocess(folder: Path, config: CLIPVisionConfig) -> Preprocess:
    """Settings of ``preprocessor_config.json`` (or ``processor_config.json``), else of a copy of tiny-clip.

    Raises: CheckpointError if there are none, they ask for something else than resize, centre crop and
        normalise, or their size is not the backbone's.
    """
    settings, path = _settings(folder, config)
    height, width, shortest = _sizes(settings, path)
    if (height, width) != (config.image_size, config.image_size):
        raise CheckpointError(
            f"{path} makes pictures of {height} x {width} pixels, but the backbone's config.json asks for "
            f"{config.image_size} x {config.image_size}. One of the two belongs to another model."
        )
    factor = settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise CheckpointError(f"{path} rescales by {factor}; only 1/255 (pixels to [0, 1]) is supported.")
    normalises = settings.get("do_normalize", True)
    mean = tuple(settings.get("image_mean") or _MEAN) if normalises else (0.0, 0.0, 0.0)
    std = tuple(settings.get("image_std") or _STD) if normalises else (1.0, 1.0, 1.0)
    resample = settings.get("resample")
    return Preprocess(height, width, shortest, _BICUBIC if resample is None else int(resample), mean, std)


def _settings(folder: Path, config: CLIPVisionConfig) -> tuple[dict[str, Any], Path]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{path} is not JSON ({error}). Copy or make it again.") from error
            return settings.get("image_processor", settings), path
    facts = config.to_dict()
    if "image_mean" in facts and "image_std" in facts:
        return {**facts, "size": config.image_size, "crop_size": config.image_size}, folder / "config.json"
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, so how to resize and normalise pictures is not known. Save the "
        "backbone's image processor there: CLIPImageProcessor.from_pretrained(...).save_pretrained(folder)."
    )


def _sizes(settings: dict[str, Any], path: Path) -> tuple[int, int, int | None]:
    """(height, width, shortest edge or None) of the two ways to say it: an integer or a dict of integers."""
    size = settings.get("size", 224)
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = settings.get("crop_size", 224)
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    whole = "height" in size and "crop_size" not in settings  # ViT's processor has no crop, and says nothing of it
    crops, resizes = settings.get("do_center_crop", not whole), settings.get("do_resize", True)
    if resizes and crops and "shortest_edge" in size:
        return crop["height"], crop["width"], size["shortest_edge"]
    if resizes and "height" in size and (not crops or crop == size):
        return size["height"], size["width"], None
    raise CheckpointError(
        f"{path} asks for size {size}, crop {crop if crops else 'none'}, resizing {'on' if resizes else 'off'}. "
        "Supported: the shortest edge resized and a centre crop, or resizing to a height and a width."
    )
