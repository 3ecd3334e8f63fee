"""Quantised checkpoints: codes and scales that mean something only together, so that no arithmetic on them is right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionlib.core import CheckpointError

_ADVICE = "Merge before quantising: give the float checkpoint that it was made from, and quantise the result."
_CONFIGS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
# names that GPTQ, AWQ, bitsandbytes, compressed-tensors, torchao and others give to codes and scales
_CODES = re.compile(
    r"(^|[.:])(qweight|qzeros|SCB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map"
    r"|quant_state\.bitsandbytes__\w+|weight_packed|weight_scale_inv|qdata|tensor_data)$"
)
_SCALE = re.compile(r"(.*)weight_scale$")


def check_not_quantised(folder: Path) -> None:
    """Refuse a folder whose configuration says that its weights are quantised.

    Raises: CheckpointError, with the advice to merge before quantising.
    """
    for name in ("config.json", *_CONFIGS):
        facts = _json(folder / name)
        if name in _CONFIGS and isinstance(facts, dict):
            raise CheckpointError(f"the model in {folder} is quantised ({name} is there). {_ADVICE}")
        method = _method(facts)
        if method:
            raise CheckpointError(f"the model in {folder} is quantised ({method}). {_ADVICE}")


def check_plain(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse a state dict that holds codes rather than numbers.

    Args:
        where: named in errors.

    Raises: CheckpointError, with the advice to merge before quantising; also for tensors that are no dense ones.
    """
    for key, tensor in state.items():
        reason = _reason(key, tensor, state)
        if reason:
            raise CheckpointError(f"{where} is quantised: {key!r} {reason}. {_ADVICE}")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            kind = "without values" if tensor.device.type == "meta" else str(tensor.layout).removeprefix("torch.")
            raise CheckpointError(
                f"{where} holds {key!r} as a tensor of another kind ({kind}); only dense ones can be merged. Save the "
                "model with save_pretrained."
            )


def _reason(key: str, tensor: Tensor, state: Mapping[str, Tensor]) -> str:
    if tensor.is_quantized:
        return f"is of dtype {tensor.dtype}"
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return f"is of dtype {tensor.dtype}"
    if _CODES.search(key):
        return "is a name of codes or scales"
    scale = _SCALE.fullmatch(key)
    if scale and f"{scale[1]}weight" in state and state[f"{scale[1]}weight"].element_size() == 1:
        return "is a name of scales"
    if key.endswith("weight") and tensor.ndim >= 2 and tensor.dtype in (torch.int8, torch.uint8, torch.int32):
        return f"is of dtype {tensor.dtype}"
    return ""


def _method(facts: Any) -> str:
    """How the weights are quantised, as a configuration says; empty if they are not."""
    if not isinstance(facts, dict):
        return ""
    for key in ("quantization_config", "compression_config"):
        settings = facts.get(key)
        if settings:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            return f"{key}: {method}" if isinstance(method, str) else key
    # models of several parts, such as those that read pictures and texts
    return next((found for value in facts.values() if isinstance(value, dict) and (found := _method(value))), "")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # what reads the configuration for its own sake complains
