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
from fusionlib.core import CheckpointError, FusionMethod, ParameterError, StateDict
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
