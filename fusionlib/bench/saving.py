"""Fused models on disk: ``save`` and ``load``. Weights in safetensors, structure in JSON, no code and no pickle.

A folder holds one of three kinds: a "single" model of an ordinary architecture, which ``from_pretrained`` reads
too; an "ensemble" with a folder for each member; or a "mixed" model, an ordinary architecture some of whose
modules were replaced by substitutes, which the structure lists.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib import ops
from fusionlib.bench.model_card import model_card
from fusionlib.bench.new_folder import new_folder
from fusionlib.bench.saved_structure import FORMAT, STRUCTURE, read_structure
from fusionlib.core import CheckpointError, FusionError, ParameterError, Record
from fusionlib.ops.modules import Ensemble
from fusionlib.ops.substitutes import Substitute, substitutes_of, with_substitutes
from fusionlib.zoo.locate import local_path
from fusionlib.zoo.quantised import check_not_quantised, check_plain
from fusionlib.zoo.quiet import silent_transformers
from fusionlib.zoo.resnet import DilatedResNet
from fusionlib.zoo.weights import first_line, read_tensors, read_weights

_WEIGHTS = "model.safetensors"


def save(model: nn.Module, folder: str | os.PathLike[str], *, record: Record | None = None) -> Path:
    """Write a fused model and its model card; the folder appears only when everything in it is written.

    Args:
        model: of an architecture with ``save_pretrained``, as it is or mixed, or an ensemble of such models.
        folder: must not exist yet.
        record: the model's measurement, which the card then states with method, hyper-parameters and metrics.
    Returns: the folder; ``fl.load`` and, for a single architecture, ``from_pretrained`` read it.
    Raises: ParameterError, for a module that cannot be described; CheckpointError, if the folder exists.
    """
    with new_folder(folder) as building:
        if isinstance(model, Ensemble):
            _save_ensemble(model, building)
        elif substitutes_of(model):
            _save_mixed(model, building)
        else:
            _save_single(model, building)
        (building / "README.md").write_text(model_card(model, record), encoding="utf-8")
    return Path(folder).expanduser()


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The model that ``save`` wrote, in evaluation mode, on the CPU.

    Raises: CheckpointError, naming what is missing or not understood.
    """
    source = local_path(folder, "saved model")
    structure = read_structure(source)
    try:
        with silent_transformers():
            return _LOADERS[structure["kind"]](source, structure)
    except FusionError:
        raise
    except Exception as error:  # files of anyone: what torch and transformers stumble over has many types
        raise CheckpointError(
            f"{source} cannot be read ({type(error).__name__}: {first_line(error)}); save the model again."
        ) from error


def _save_ensemble(model: Ensemble, folder: Path) -> None:
    members = model.unstacked()
    names = [f"member-{index}" for index in range(len(members))]
    dtypes = [_dtypes(member) for member in members]
    if any(each != dtypes[0] for each in dtypes):
        raise ParameterError("the members of an ensemble differ in dtype; convert them to one, then save it.")
    for name, member in zip(names, members, strict=True):
        _architecture(member).save_pretrained(folder / name)
    described = {
        "kind": "ensemble",
        "class": type(model).__name__,
        "architecture": type(members[0]).__name__,
        "given": model.given(),
        "members": names,
        **_options(members[0]),
        **dtypes[0],
    }
    _write_structure(folder, described)


def _save_single(model: nn.Module, folder: Path) -> None:
    _architecture(model).save_pretrained(folder)
    described = {"kind": "single", "architecture": type(model).__name__, **_options(model), **_dtypes(model)}
    _write_structure(folder, described)


def _options(model: nn.Module) -> dict[str, Any]:
    """What the constructor must be told besides the configuration: that a backbone has no pooler."""
    return {"options": {"add_pooling_layer": False}} if getattr(model, "pooler", model) is None else {}


def _dtypes(model: nn.Module) -> dict[str, Any]:
    """The dtype of each weight, where floating-point ones have several, which transformers does not remember."""
    found = {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if len(set(found.values())) < 2:
        return {}
    return {"dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in found.items()}}


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
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        raise ParameterError(
            f"a compiled model cannot be saved; save the {type(inner).__name__} in it, which is its _orig_mod."
        )
    import transformers

    if type(model) is not DilatedResNet and getattr(transformers, type(model).__name__, None) is not type(model):
        raise ParameterError(
            f"a {type(model).__name__} cannot be saved: it is no class of transformers, so fl.load would not find it. "
            "Merge an adapter first (merge_and_unload); of a class of your own, save the state dict with safetensors."
        )
    return model


def _write_structure(folder: Path, described: dict[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, **described}, indent=1)
    (folder / STRUCTURE).write_text(text + "\n", encoding="utf-8")


def _load_ensemble(folder: Path, structure: Mapping[str, Any]) -> nn.Module:
    known: dict[str, Any] = {cls.__name__: cls for cls in (Ensemble, *Ensemble.__subclasses__())}
    if structure["class"] not in known:
        raise CheckpointError(
            f"{folder / STRUCTURE} names the class {structure['class']!r}. Allowed: {', '.join(known)}."
        )
    members = [_load_single(folder / name, structure) for name in structure["members"]]
    return known[structure["class"]](members, **structure["given"]).eval()


def _load_single(folder: Path, structure: Mapping[str, Any]) -> nn.Module:
    read_weights(folder)  # before transformers does: damaged, quantised, shards elsewhere
    if structure["architecture"] == DilatedResNet.__name__:
        return DilatedResNet.from_pretrained(folder)
    cls = _class_of(structure["architecture"], folder)
    dtypes = {name: getattr(torch, dtype) for name, dtype in structure.get("dtypes", {}).items()}
    widest = {"dtype": functools.reduce(torch.promote_types, dtypes.values())} if dtypes else {}
    model, found = cls.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **widest,
        **structure.get("options", {}),
    )
    for problem in ("missing_keys", "unexpected_keys"):  # transformers only warns, and leaves random weights
        if found[problem]:
            names = ", ".join(sorted(found[problem])[:5])
            raise CheckpointError(
                f"{folder} cannot be read: {problem.replace('_', ' ')} {names}; save the model again."
            )
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in dtypes:
                tensor.data = tensor.data.to(dtypes[name])
    return model.eval()


def _load_mixed(folder: Path, structure: Mapping[str, Any]) -> nn.Module:
    from safetensors.torch import load_model

    cls = _class_of(structure["architecture"], folder)
    check_not_quantised(folder)
    check_plain(read_tensors(folder / _WEIGHTS), str(folder / _WEIGHTS))
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten at once
        model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
        parts = {
            name: _substitute_class(part, folder).rebuild(model.get_submodule(name), part)
            for name, part in structure["replaced"].items()
        }
    mixed = with_substitutes(model, parts).to(getattr(torch, structure["dtype"]))
    load_model(mixed, folder / _WEIGHTS)
    return mixed


_LOADERS = {"single": _load_single, "ensemble": _load_ensemble, "mixed": _load_mixed}


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
