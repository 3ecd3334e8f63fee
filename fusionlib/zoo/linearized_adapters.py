"""Adapters of linearised LoRA as they were published: every adapted layer was linearised by itself.

Around the start (A0, B0) of its adapter, the layer x -> (W + s B A) x becomes, in A and B,

    W + s (B0 A0 + (B - B0) A0 + B0 (A - A0)),

which multiplies x like any other weight: merged into the weights, the model computes the same. Merging A and B as an
ordinary adapter, W + s B A, would give another model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from fusionlib.core import CheckpointError, KeyMismatch, StateDict
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.weights import read_tensors

WEIGHTS = "linearized_adapter_model.safetensors"
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?:(?:model\.)?lora_(?P<part>[AB])(?:\.default)?\.weight|params0_values\.(?P<index>\d+))"
)


def is_linearized(folder: Path) -> bool:
    """Whether a folder holds a linearised adapter."""
    return (folder / WEIGHTS).is_file()


def merge_linearized(backbone: Backbone, folder: Path) -> StateDict:
    """The backbone's weights with the linearised adapter in ``folder`` added, float32, under the backbone's own keys.

    Raises:
        CheckpointError: its files are missing or unreadable, or the start of a layer's adapter is not in them.
        KeyMismatch: it is for layers that the backbone has not.

    Source: Tang et al. 2023, "Parameter-efficient multi-task model fusion with partial linearization".
    Deviates: the authors' code keeps the layers linearised and differentiates them at every pass; this is the same
        function in closed form. The paper's equation 5 linearises the whole model in the adapters instead, see
        ``fusionlib.ops.linearized``.
    """
    scale = _scale(folder / "adapter_config.json")
    parts: dict[str, dict[str, Tensor]] = {}
    starts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise KeyMismatch(f"{folder / WEIGHTS} holds {name!r}, which is no part of a linearised LoRA layer.")
        if match["part"]:
            parts.setdefault(match["module"], {})[match["part"]] = tensor.float()
        else:
            starts.setdefault(match["module"], {})[int(match["index"])] = tensor.float()
    merged = {name: tensor.clone() for name, tensor in backbone.state.items()}
    for module, found in parts.items():
        key = next((k for k in (f"{module}.weight", f"vision_model.{module}.weight") if k in merged), None)
        # the parameters of a layer in their order: those of the layer below, then A, then B
        begin = [tensor for _, tensor in sorted(starts.get(module, {}).items())][-2:]
        if len(found) != 2 or [each.shape for each in begin] != [found["A"].shape, found["B"].shape]:
            raise CheckpointError(f"{folder / WEIGHTS} lacks A, B, or where they started, of {module}. Copy it again.")
        change = _tangent(found["A"], found["B"], *begin)
        if key is None or merged[key].shape != change.shape:
            raise KeyMismatch(
                f"the adapter in {folder} is for a layer {module} of shape {tuple(change.shape)}, which "
                f"{backbone.name!r} has not. Check that it was trained on this backbone."
            )
        merged[key] += scale * change
    return merged


def _tangent(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor) -> Tensor:
    """B A linearised around (A0, B0)."""
    return torch.addmm(b0 @ (a - a0), b, a0)


def _scale(path: Path) -> float:
    """What LoRA's update is multiplied by."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        root = 0.5 if facts.get("use_rslora") else 1.0
        return facts["lora_alpha"] / facts["r"] ** root
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} can't be read as the configuration of a LoRA ({error!r}). Copy it again."
        ) from error
