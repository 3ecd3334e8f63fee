"""PEFT adapters, merged into the weights they were trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.weights import check_keys, read_tensors

ADAPTER_CONFIG = "adapter_config.json"
_TOWER = "base_model.model.vision_model."


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than whole weights."""
    return (folder / ADAPTER_CONFIG).is_file()


def wrap(model: nn.Module, config: Any) -> Any:
    """A ``PeftModel`` around a module; LoRA's initial weights are drawn from torch's global generator."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT asks for a property that transformers has renamed; nothing here uses gradient checkpointing
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return PeftModel(model, config)  # type: ignore[arg-type]


def read_adapter(folder: Path) -> StateDict:
    """The tensors of a PEFT adapter under the names in its file; CheckpointError if there is none."""
    files = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    weights = next((path for path in files if path.is_file()), None)
    if weights is None:
        raise CheckpointError(f"{folder} has an {ADAPTER_CONFIG} but no {files[0].name}. Copy it there.")
    return read_tensors(weights)


def merge_adapter(backbone: Backbone, folder: Path) -> StateDict:
    """The backbone's weights with the adapter in ``folder`` added, float32, under the backbone's own keys.

    Raises:
        CheckpointError: the adapter's files are missing, unreadable, or for modules the backbone has not.
        KeyMismatch: its tensors are not exactly those that its configuration asks for.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict

    found = read_adapter(folder)
    if any(name.startswith("vision_model.") for name in backbone.state):
        # trained on a bare CLIPVisionModel, whose modules have no "vision_model." before them
        found = {name.replace("base_model.model.encoder.", f"{_TOWER}encoder."): value for name, value in found.items()}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        with torch.random.fork_rng(devices=[]):
            model = wrap(backbone.build(), config)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the adapter in {folder} does not fit {backbone.name!r}: {error}") from error
    check_keys(found, get_peft_model_state_dict(model, save_embedding_layers=False), str(folder))
    set_peft_model_state_dict(model, found)
    merged = model.merge_and_unload().state_dict()
    return {name: merged[name].detach().float() for name in backbone.state}
