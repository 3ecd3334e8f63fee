"""Any model that save_pretrained wrote, as a state dict under the names of a pretrained one: whole or PEFT adapter."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, KeyMismatch, StateDict
from fusionlib.zoo.adapters import is_adapter
from fusionlib.zoo.locate import locate
from fusionlib.zoo.quiet import silent_transformers
from fusionlib.zoo.weights import read_config, read_weights

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".index.json")


def read_like(
    name: str | PathLike[str], pretrained: Path, wanted: StateDict, keep: Sequence[str] = ()
) -> tuple[StateDict, list[str]]:
    """A fine-tuned model under the names of the pretrained one, and the names of what was left out.

    A model that holds the pretrained one below a prefix, as a classifier holds its backbone, gives that part; what
    is beside it, its head, is left out. The other way round, a bare backbone is put below the prefix.

    Args:
        name: folder or hub id.
        pretrained: folder of the pretrained model, into which an adapter is merged.
        wanted: its state dict.
        keep: patterns (``classifier.*``) of names whose values stay the pretrained ones, whatever the model holds.

    Raises: CheckpointError, UnknownName; KeyMismatch, naming keys and shapes.
    """
    folder = locate(name, f"fine-tuned model {str(name)!r}")
    found = _merged(pretrained, folder, wanted) if is_adapter(folder) else read_weights(folder)
    state, left = _aligned(found, wanted)
    kept = {key for key in {*state, *wanted} if any(fnmatch.fnmatchcase(key, pattern) for pattern in keep)}
    left += [key for key in state if key in kept]
    state = {key: value for key, value in state.items() if key not in kept}
    state |= {key: wanted[key] for key in kept if key in wanted}
    _check(state, wanted, folder)
    return {key: state[key] for key in wanted}, sorted(left)


def companions(folder: Path) -> list[Path]:
    """The files beside the weights of a model: configuration, tokenizer, processor."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if not path.name.endswith(_WEIGHTS) and path.name != "README.md"]


def build_like(folder: Path) -> nn.Module:
    """The model in a folder, of the class its configuration names, float32, in evaluation mode.

    Raises: CheckpointError, if transformers has no such class, or the folder lacks some of its weights.
    """
    import transformers

    names = read_config(folder).get("architectures") or ["none"]
    cls: Any = getattr(transformers, names[0], None)
    if not isinstance(cls, type):
        raise CheckpointError(f"{folder} holds a model of class {names[0]!r}, which transformers does not have.")
    return load_complete(cls, folder)


def load_complete(cls: Any, folder: Path, optional: str = "", **options: Any) -> nn.Module:
    """``from_pretrained``, but without its silence about weights that are not there.

    Args:
        optional: missing weights outside of this prefix are fine; empty means that none is.
        options: of ``from_pretrained``, such as ``num_labels``.
    """
    try:
        with silent_transformers(), torch.random.fork_rng(devices=[]):
            model, about = cls.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"the model in {folder} can't be read: {str(error).strip()}") from error
    absent = sorted(key for key in about["missing_keys"] if key.startswith(optional))
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} weights of a {type(model).__name__}: {', '.join(absent[:5])}. Its "
            "config.json belongs to another model, or the weights are incomplete: save the model again."
        )
    return model.eval()


def adapt(model: nn.Module, folder: Path) -> nn.Module:
    """The model with a PEFT adapter merged into its weights.

    Raises: CheckpointError, if the adapter does not fit.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # PEFT asks for a property that transformers has renamed; nothing here uses gradient checkpointing
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, str(folder))  # type: ignore[arg-type]
            return adapted.merge_and_unload().eval()
    except (TypeError, ValueError, KeyError, RuntimeError, OSError, UserWarning) as error:
        raise CheckpointError(f"the adapter in {folder} does not fit the pretrained model: {error}") from error


def _merged(pretrained: Path, folder: Path, wanted: StateDict) -> StateDict:
    """The pretrained model with an adapter merged in; second names of tied tensors, which files leave out, are gone."""
    state = {key: value.detach() for key, value in adapt(build_like(pretrained), folder).state_dict().items()}
    stored = {state[key].data_ptr() for key in wanted if key in state}
    return {key: value for key, value in state.items() if key in wanted or value.data_ptr() not in stored}


def _aligned(found: StateDict, wanted: StateDict) -> tuple[StateDict, list[str]]:
    """``found`` under the names of ``wanted`` where only a prefix is between them, and what lies beside it."""
    if any(key in wanted for key in found):
        return dict(found), []
    for prefix in dict.fromkeys(key.partition(".")[0] + "." for key in found):
        inner = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        if any(key in wanted for key in inner):
            return inner, [key for key in found if not key.startswith(prefix)]
    for prefix in dict.fromkeys(key.partition(".")[0] + "." for key in wanted):
        if any(prefix + key in wanted for key in found):
            return {prefix + key: value for key, value in found.items()}, []
    return dict(found), []


def _check(state: StateDict, wanted: StateDict, folder: Path) -> None:
    missing = [key for key in wanted if key not in state]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the pretrained {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    extra = [key for key in state if key not in wanted]
    parts = [
        f"{title}: {', '.join(listed[:5])}{' and more' if len(listed) > 5 else ''}"
        for title, listed in (("missing", missing), ("other shapes", shapes), ("unexpected", extra))
        if listed
    ]
    if parts:
        raise KeyMismatch(
            f"the model in {folder} does not fit the pretrained one. {'. '.join(parts)}. Merge fine-tunes of one "
            "pretrained model; tensors that must differ, such as heads, can be left as they are with `keep` (patterns "
            "such as classifier.*)."
        )
