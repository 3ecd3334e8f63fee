"""A ResNet whose late stages are dilated: an encoder for dense prediction, with torchvision's names of weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.weights import check_keys, read_config, read_weights

EXPANSION = 4  # a bottleneck gives so many times the channels that it works on
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class ResNetConfig:
    """Shape of the encoder; the defaults are ResNet-50 with output stride 8.

    Attributes:
        blocks: bottlenecks in each of the four stages.
        width: channels of the stem; the stages work on 1, 2, 4 and 8 times as many and give four times that.
        output_stride: pixels per feature, along each side: 4, 8, 16 or 32. A stage that would go beyond it keeps the
            resolution, and its 3 x 3 convolutions are dilated instead.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    output_stride: int = 8

    def __post_init__(self) -> None:
        if self.output_stride not in STRIDES:
            raise ParameterError(f"output_stride = {self.output_stride!r} is not allowed; choose one of {STRIDES}.")

    @property
    def dim(self) -> int:
        """Channels of the features."""
        return self.width * 2 ** (len(self.blocks) - 1) * EXPANSION

    def to_json_string(self) -> str:
        """As JSON; the same string for the same shape."""
        return json.dumps({"model_type": "dilated_resnet", "architectures": ["DilatedResNet"], **asdict(self)})


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (strided or dilated) and 1 x 1 convolution beside a shortcut."""

    def __init__(self, channels: int, planes: int, stride: int, dilation: int):
        super().__init__()
        out = planes * EXPANSION
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, 4 planes, h / stride, w / stride)."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        shortcut = x if self.downsample is None else self.downsample(x)
        return (self.bn3(self.conv3(y)) + shortcut).relu()


class DilatedResNet(nn.Module):
    """ResNet (He et al. 2016) without pooling and classifier at its end, dilated as by Yu et al. 2017.

    Its weights have the names of torchvision's ``resnet50``, whose ``fc`` is not there; the same numbers give the
    same features as ``resnet50(replace_stride_with_dilation=[False, True, True])``.
    """

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, reached, dilation = config.width, 4, 1
        for index, blocks in enumerate(config.blocks):
            stride, before, planes = 1 if index == 0 else 2, dilation, config.width * 2**index
            if stride == 2 and reached == config.output_stride:
                stride, dilation = 1, dilation * 2
            reached *= stride
            stage = [Bottleneck(channels, planes, stride, before)]  # the first block still sees the finer grid
            channels = planes * EXPANSION
            stage += [Bottleneck(channels, planes, 1, dilation) for _ in range(blocks - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W) to features (B, dim, H / output_stride, W / output_stride)."""
        features = self.maxpool(self.bn1(self.conv1(pixel_values)).relu())
        for index in range(len(self.config.blocks)):
            features = self.get_submodule(f"layer{index + 1}")(features)
        return features

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(self.config.to_json_string() + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, target / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> DilatedResNet:
        """Read what ``save_pretrained`` wrote, in evaluation mode; CheckpointError, KeyMismatch."""
        source = Path(folder)
        facts = read_config(source)
        try:
            config = ResNetConfig(tuple(facts["blocks"]), facts["width"], facts["output_stride"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{source / 'config.json'} does not describe a dilated ResNet ({error!r})."
            ) from error
        model, state = cls(config), read_weights(source)
        check_keys(state, model.state_dict(), str(source))
        model.load_state_dict(state)
        return model.eval()
