"""Fused models on disk: ``save`` and ``load``. Weights in safetensors, structure in JSON, no code and no pickle.

A folder holds one of three kinds: a "single" model of an ordinary architecture, which ``from_pretrained`` reads
too; an "ensemble" with a folder for each member; or a "mixed" model, an ordinary architecture some of whose
modules were replaced by substitutes, which the structure lists.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib import ops
from fusionlib.bench.model_card import model_card
from fusionlib.core import CheckpointError, ParameterError, Record
from fusionlib.ops.modules import Ensemble
from fusionlib.ops.substitutes import Substitute, substitutes_of, with_substitutes
from fusionlib.zoo.resnet import DilatedResNet

STRUCTURE = "structure.json"
_WEIGHTS = "model.safetensors"
_FORMAT = 1


def save(model: nn.Module, folder: str | os.PathLike[str], *, record: Record | None = None) -> Path:
    """Write a fused model and its model card; the folder appears only when everything in it is written.

    Args:
        model: of an architecture with ``save_pretrained``, as it is or mixed, or an ensemble of such models.
        folder: must not exist yet.
        record: the model's measurement, which the card then states with method, hyper-parameters and metrics.
    Returns: the folder; ``fl.load`` and, for a single architecture, ``from_pretrained`` read it.
    Raises: ParameterError, for a module that cannot be described; CheckpointError, if the folder exists.
    """
    target = Path(folder)
    if target.exists():
        raise CheckpointError(f"{target} exists already; choose another folder, or remove it first.")
    building = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        if isinstance(model, Ensemble):
            _save_ensemble(model, building)
        elif substitutes_of(model):
            _save_mixed(model, building)
        else:
            _save_single(model, building)
        (building / "README.md").write_text(model_card(model, record), encoding="utf-8")
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The model that ``save`` wrote, in evaluation mode, on the CPU.

    Raises: CheckpointError, naming what is missing or not understood.
    """
    source = Path(folder)
    path = source / STRUCTURE
    if not path.is_file():
        raise CheckpointError(f"{source} holds no {STRUCTURE}; it was not written by fl.save, or not completely.")
    try:
        structure = json.loads(path.read_text(encoding="utf-8"))
        kind, version = structure["kind"], structure["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); save the model again.") from error
    if version != _FORMAT or kind not in ("single", "ensemble", "mixed"):
        raise CheckpointError(
            f"{path} has kind {kind!r}, format {version!r}, which this version does not know; update."
        )
    if kind == "single":
        return _load_single(source, structure["architecture"], structure.get("options"))
    if kind == "mixed":
        return _load_mixed(source, structure)
    options = structure.get("options")
    members = [_load_single(source / name, structure["architecture"], options) for name in structure["members"]]
    known: dict[str, Any] = {cls.__name__: cls for cls in (Ensemble, *Ensemble.__subclasses__())}
    if structure["class"] not in known:
        raise CheckpointError(f"{path} names the class {structure['class']!r}. Allowed: {', '.join(known)}.")
    return known[structure["class"]](members, **structure["given"]).eval()


def _save_ensemble(model: Ensemble, folder: Path) -> None:
    members = model.unstacked()
    names = [f"member-{index}" for index in range(len(members))]
    for name, member in zip(names, members, strict=True):
        _architecture(member).save_pretrained(folder / name)
    described = {
        "kind": "ensemble",
        "class": type(model).__name__,
        "architecture": type(members[0]).__name__,
        "given": model.given(),
        "members": names,
        **_options(members[0]),
    }
    _write_structure(folder, described)


def _save_single(model: nn.Module, folder: Path) -> None:
    _architecture(model).save_pretrained(folder)
    _write_structure(folder, {"kind": "single", "architecture": type(model).__name__, **_options(model)})


def _options(model: nn.Module) -> dict[str, Any]:
    """What the constructor must be told besides the configuration: that a backbone has no pooler."""
    return {"options": {"add_pooling_layer": False}} if getattr(model, "pooler", model) is None else {}


def _save_mixed(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_model

    _architecture(model).config.save_pretrained(folder)
    save_model(model, str(folder / _WEIGHTS))
    replaced = {
        name: {"file": type(part).__module__.rpartition(".")[2], "class": type(part).__name__, **part.structure()}
        for name, part in substitutes_of(model).items()
    }
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    described = {"kind": "mixed", "architecture": type(model).__name__, "dtype": dtype, "replaced": replaced}
    _write_structure(folder, described)


def _architecture(model: nn.Module) -> Any:
    if not hasattr(model, "save_pretrained"):
        raise ParameterError(
            f"a {type(model).__name__} cannot be saved: it has no save_pretrained. "
            "Save its state dict with safetensors."
        )
    return model


def _write_structure(folder: Path, described: dict[str, Any]) -> None:
    text = json.dumps({"format": _FORMAT, **described}, indent=1)
    (folder / STRUCTURE).write_text(text + "\n", encoding="utf-8")


def _load_single(folder: Path, architecture: str, options: dict[str, Any] | None = None) -> nn.Module:
    from safetensors import SafetensorError

    if architecture == DilatedResNet.__name__:
        return DilatedResNet.from_pretrained(folder)
    cls = _class_of(architecture, folder)
    try:
        model, found = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **(options or {})
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):  # transformers only warns, and leaves random weights
        if found[problem]:
            names = ", ".join(sorted(found[problem])[:5])
            raise CheckpointError(
                f"{folder} cannot be read: {problem.replace('_', ' ')} {names}; save the model again."
            )
    return model.eval()


def _load_mixed(folder: Path, structure: dict[str, Any]) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    cls = _class_of(structure["architecture"], folder)
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten at once
        model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
        parts = {
            name: _substitute_class(part, folder).rebuild(model.get_submodule(name), part)
            for name, part in structure["replaced"].items()
        }
    mixed = with_substitutes(model, parts).to(getattr(torch, structure["dtype"]))
    try:
        load_model(mixed, folder / _WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS} cannot be read: {error}") from error
    return mixed


def _class_of(architecture: str, folder: Path) -> Any:
    import transformers

    cls = getattr(transformers, architecture, None)
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise CheckpointError(f"transformers has no model called {architecture!r}, which {folder} needs; update it.")
    return cls


def _substitute_class(part: dict[str, Any], folder: Path) -> type[Substitute]:
    file, name = part["file"], part["class"]
    if file in {module.name for module in pkgutil.iter_modules(ops.__path__)}:
        found = getattr(importlib.import_module(f"{ops.__name__}.{file}"), name, None)
        if isinstance(found, type) and issubclass(found, Substitute):
            return found
    raise CheckpointError(f"{folder} needs {name!r} of {file!r}, which this version does not have; update.")
