"""``merge``: any models that save_pretrained wrote, merged into a folder that from_pretrained reads, without tasks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionlib import methods
from fusionlib.bench.hyperparameters import Method, complete
from fusionlib.core import CheckpointError, FusionMethod, ParameterError, StateDict, suggest
from fusionlib.ops.statedict import num_parameters
from fusionlib.zoo.folders import companions, read_like
from fusionlib.zoo.locate import locate
from fusionlib.zoo.weights import read_weights

_SHARD = "5GB"
_Models = Sequence[str | os.PathLike[str]]


def merge(
    method: Method,
    pretrained: str | os.PathLike[str],
    finetuned: _Models,
    folder: str | os.PathLike[str],
    *,
    keep: Sequence[str] = (),
    **hyperparameters: Any,
) -> Path:
    """Merge fine-tuned models by their weights alone and write the result; the folder appears when all is written.

    Files are mapped into memory and read block by block: beside the result, little is held.

    Args:
        method: one that fuses weights and needs nothing else, such as "ties_merging".
        pretrained: folder or hub id, of any architecture; configuration, tokenizer and dtype come from it.
        finetuned: folders or hub ids of its fine-tunes, whole or PEFT adapters. Where ``pretrained`` is a bare
            backbone and they have heads, backbones are merged and heads left out.
        folder: must not exist yet.
        keep: patterns (``classifier.*``) of tensors that stay the pretrained ones, whatever the fine-tunes hold.
        hyperparameters: of the method's ``fuse``.
    Returns: the folder.
    Raises: ParameterError, UnknownName, CheckpointError, KeyMismatch, NonFiniteError.
    """
    known = methods.get(method)
    if known.card.takes != "weights":
        able = [name for name in methods.names() if methods.get(name).card.takes == "weights"]
        raise ParameterError(
            f"{known.card.name} needs models that run, or data; from weights alone, a merge can be "
            f"{', '.join(able)}. For the others load a suite with tasks: fl.load_suite."
        )
    settings = complete(known, hyperparameters)
    target = Path(folder)
    if target.exists():
        raise CheckpointError(f"{target} exists already; choose another folder, or remove it first.")
    if not finetuned:
        raise ParameterError("finetuned is empty: name the folders or hub ids of at least one fine-tuned model.")
    source = locate(pretrained, "pretrained model")
    base = read_weights(source)
    states, left = [], {}
    for name in finetuned:
        state, beside = read_like(name, source, base, keep)
        states.append(state)
        left[str(name)] = beside
    merged = known.fuse(base, states, **settings)
    _write(merged, source, target, _card(known, settings, str(pretrained), left, keep, merged))
    return target


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML file with ``method``, ``pretrained``, ``finetuned`` and, if wanted, ``keep`` and ``hyperparameters``.

    Returns: the arguments of ``merge`` but for the folder.
    Raises: ParameterError, saying what is missing, unknown or of the wrong kind.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} can't be read as YAML: {error}") from None
    allowed = ("method", "pretrained", "finetuned", "keep", "hyperparameters")
    if not isinstance(values, Mapping):
        raise ParameterError(f"{path} must hold `name: value` lines. Allowed: {', '.join(allowed)}.")
    for key in values:
        if key not in allowed:
            raise ParameterError(f"{path}: {key!r} is not part of a merge.{suggest(str(key), allowed)}")
    for key, example in (("method", "ties_merging"), ("pretrained", "path/to/model")):
        if not isinstance(values.get(key), str):
            raise ParameterError(f"{path}: {key} must be a string, as in `{key}: {example}`.")
    models = values.get("finetuned")
    models = list(models.values()) if isinstance(models, Mapping) else models
    for key, listed in (("finetuned", models), ("keep", values.get("keep", []))):
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise ParameterError(f"{path}: {key} must be a list of strings, as in `{key}: [one, two]`.")
    settings = values.get("hyperparameters") or {}
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ParameterError(f"{path}: hyperparameters must be a mapping, as in `hyperparameters: {{scale: 0.3}}`.")
    chosen = {"method": values["method"], "pretrained": values["pretrained"], "finetuned": models}
    return {**chosen, "keep": values.get("keep", []), **settings}


def _write(state: StateDict, source: Path, target: Path, card: str) -> None:
    from huggingface_hub import save_torch_state_dict

    building = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for path in companions(source):
            shutil.copyfile(path, building / path.name)
        save_torch_state_dict(state, building, max_shard_size=_SHARD, metadata={"format": "pt"})
        (building / "README.md").write_text(card, encoding="utf-8")
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _card(
    method: FusionMethod,
    settings: Mapping[str, Any],
    pretrained: str,
    left: Mapping[str, list[str]],
    keep: Sequence[str],
    state: StateDict,
) -> str:
    lines = [
        "# A merged model",
        "",
        f"{method.card.title} (`{method.card.name}` {json.dumps(dict(settings))}) of {len(left)} models fine-tuned "
        f"from `{pretrained}`: {num_parameters(state):,} parameters. Written by fusionlib; `from_pretrained` reads it.",
        "",
        *(f"- `{name}`{_without(names)}" for name, names in left.items()),
        "",
        f"Kept from the pretrained model: {', '.join(keep)}." if keep else "All of its tensors were merged.",
        "",
        "It was not evaluated. Configuration, tokenizer and processor are the pretrained model's.",
    ]
    return "\n".join(lines) + "\n"


def _without(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 5 else ""
    return f", without {len(names)} tensors: {', '.join(names[:5])}{more}" if names else ""
