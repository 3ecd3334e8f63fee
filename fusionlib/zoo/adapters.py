"""PEFT adapters, merged into the weights they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.weights import check_keys, read_tensors

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than whole weights."""
    return (folder / ADAPTER_CONFIG).is_file()


def merge_adapter(backbone: Backbone, folder: Path) -> StateDict:
    """The backbone's weights with the adapter in ``folder`` added, float32, under the backbone's own keys.

    Raises:
        CheckpointError: the adapter's files are missing, unreadable, or for modules the backbone has not.
        KeyMismatch: its tensors are not exactly those that its configuration asks for.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.peft_model import PeftModel

    weights = next(
        (
            folder / f"adapter_model{end}"
            for end in (".safetensors", ".bin")
            if (folder / f"adapter_model{end}").is_file()
        ),
        None,
    )
    if weights is None:
        raise CheckpointError(f"{folder} has an {ADAPTER_CONFIG} but no adapter_model.safetensors. Copy it there.")
    found = read_tensors(weights)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        model: Any = PeftModel(backbone.build(), config)  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the adapter in {folder} does not fit {backbone.name!r}: {error}") from error
    check_keys(found, get_peft_model_state_dict(model, save_embedding_layers=False), str(folder))
    set_peft_model_state_dict(model, found)
    merged = model.merge_and_unload().state_dict()
    return {name: merged[name].detach().float() for name in backbone.state}
