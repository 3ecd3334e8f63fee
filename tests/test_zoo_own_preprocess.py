"""Preprocessing of own backbones equals that of transformers' CLIP image processor, without its imports."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fusionlib.core import CheckpointError
from fusionlib.zoo.own_preprocess import read_preprocess

CLIP = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
OLD = {"size": 48, "crop_size": 48, "resample": 2, "do_resize": True, "do_center_crop": True, "do_normalize": True}
SQUARE = {"size": {"height": 48, "width": 48}, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PLAIN = {**CLIP, "do_normalize": False}


def config(size=48):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(image_size=size)


def picture(mode, size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("settings", [CLIP, OLD, SQUARE, PLAIN])
@pytest.mark.parametrize(("mode", "size"), [("RGB", (100, 61)), ("L", (61, 100)), ("P", (48, 48)), ("RGBA", (30, 75))])
def test_equals_transformers(tmp_path, settings, mode, size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = picture(mode, size)
    ours = read_preprocess(tmp_path, config())
    found = ours.normalise(ours.pixels(image)[None])
    expected = CLIPImageProcessorPil(**settings)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_processor_config_of_newer_versions(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CLIP}))
    assert read_preprocess(tmp_path, config()).shortest_edge == 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**CLIP, "crop_size": 40},
            "makes pictures of 40 x 40 pixels, but the backbone's config.json asks for 48 x 48",
        ),
        ({**CLIP, "rescale_factor": 1.0}, "rescales by 1.0; only 1/255"),
        ({**CLIP, "do_resize": False}, "resizing off. Supported"),
        ({"size": {"longest_edge": 48}}, "longest_edge.*Supported"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, settings, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        read_preprocess(tmp_path, config())


def test_absent_or_broken_settings(tmp_path):
    with pytest.raises(CheckpointError, match=r"no preprocessor_config.json.*CLIPImageProcessor.from_pretrained"):
        read_preprocess(tmp_path, config())
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_preprocess(tmp_path, config())
