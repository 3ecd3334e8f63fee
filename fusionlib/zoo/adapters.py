"""PEFT adapters in folders: which folders hold one, its tensors, and PEFT's wrapper for training one."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, NonFiniteError, StateDict
from fusionlib.zoo.adapter_config import ADAPTER_CONFIG
from fusionlib.zoo.weights import read_tensors

_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_WHOLE = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
# torch.compile and checkpointed activations put these between names, DistributedDataParallel before them
_INNER = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than whole weights, beside which its configuration may be left.

    Raises: CheckpointError, if it holds both.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    if not any(next(folder.glob(pattern), None) for pattern in _WHOLE):
        return True
    beside = [name for name in _ADAPTER if (folder / name).is_file()]
    if beside:
        raise CheckpointError(
            f"{folder} holds a whole model and an adapter, {beside[0]}; which of the two is meant is not known. If the "
            f"adapter was merged into the model, remove {beside[0]} and {ADAPTER_CONFIG}; if not, give the adapter a "
            "folder of its own."
        )
    return False


@contextmanager
def complete_alone(folder: Path) -> Iterator[Path]:
    """A folder with the same files but without those of an adapter, which ``from_pretrained`` would add to the model.

    It would follow a configuration that was left there to the model the adapter had been trained on.
    """
    if not (folder / ADAPTER_CONFIG).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fusionlib-") as place:
        for path in folder.iterdir():
            if path.name not in (ADAPTER_CONFIG, *_ADAPTER):
                (Path(place) / path.name).symlink_to(path.absolute())
        yield Path(place)


def wrap(model: nn.Module, config: Any) -> Any:
    """A ``PeftModel`` around a module; LoRA's initial weights are drawn from torch's global generator."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT asks for a property that transformers has renamed; nothing here uses gradient checkpointing
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return PeftModel(model, config)  # type: ignore[arg-type]


def read_adapter(folder: Path) -> StateDict:
    """The tensors of a PEFT adapter under the names in its file, without the prefixes of wrappers.

    Raises: CheckpointError, if there is none, or it can't be read; NonFiniteError.
    """
    path = next((folder / name for name in _ADAPTER if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has an {ADAPTER_CONFIG} but no {_ADAPTER[0]}. Copy it there.")
    found = read_tensors(path)
    if not found:
        raise CheckpointError(f"{path} holds no tensors at all. Copy it again, or save the adapter again.")
    odd = [
        name for name, tensor in found.items() if tensor.is_complex() or (tensor.is_floating_point() and _tiny(tensor))
    ]
    if odd:
        raise CheckpointError(
            f"{path} holds {odd[0]} in {found[odd[0]].dtype}: adapters are merged from float32, float16 or bfloat16. "
            "Save it in one of these."
        )
    bad = [name for name, tensor in found.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise NonFiniteError(f"{path} holds NaN or Inf in {', '.join(bad[:5])}. Its training diverged: train it again.")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return {_INNER.sub("", name): tensor for name, tensor in found.items()}


def _tiny(tensor: torch.Tensor) -> bool:
    return tensor.element_size() == 1  # the kinds of float8
