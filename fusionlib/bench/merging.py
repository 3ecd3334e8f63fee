"""``merge``: any models that save_pretrained wrote, merged into a folder that from_pretrained reads, without tasks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionlib import methods
from fusionlib.bench.escape import code, escaped
from fusionlib.bench.hyperparameters import Method, complete
from fusionlib.bench.log import logger
from fusionlib.bench.new_folder import free_place, new_folder
from fusionlib.core import FusionMethod, ParameterError, StateDict
from fusionlib.ops.statedict import num_parameters
from fusionlib.zoo.companions import companions
from fusionlib.zoo.folders import Models, read_models

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
        finetuned: folders or hub ids of its fine-tunes, whole or PEFT adapters. Where they have heads that
            ``pretrained`` has not, these are left out; the terminal and the model card say so.
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
    if settings.get("return_all"):
        raise ParameterError(
            f"return_all makes {known.card.name} give several models, and merge writes one. Leave it out, or call "
            f"fusionlib.methods.{known.card.name}.fuse, which returns them all."
        )
    names, patterns = _listed(finetuned, "finetuned", (str, os.PathLike)), _listed(keep, "keep", (str,))
    if not names:
        raise ParameterError("finetuned is empty: name the folders or hub ids of at least one fine-tuned model.")
    if not isinstance(pretrained, str | os.PathLike):
        raise ParameterError(f"pretrained must be one folder or hub id, not {type(pretrained).__name__}.")
    free_place(folder)
    models = read_models(pretrained, names, patterns)
    for who, notes in ((pretrained, models.base_notes), *zip(names, _said(models), strict=True)):
        for note in notes:
            logger.info("%s: %s.", who, note)
    merged = known.fuse(models.pretrained, models.finetuned, **settings)
    merged |= {name: models.pretrained[name] for name in models.kept}
    card = _card(known, settings, str(pretrained), [str(name) for name in names], models, patterns, merged)
    with new_folder(folder) as building:
        _write(merged, models, building, card)
    return Path(folder).expanduser()


def _listed(given: Any, name: str, kinds: tuple[type, ...]) -> list[Any]:
    """The items of a list; one text is not read letter by letter."""
    items = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        shown = given if isinstance(given, str) else "..."
        raise ParameterError(
            f"{name} must be a list, as in {name}=[{shown!r}], not one {type(given).__name__}."
            if isinstance(given, str | os.PathLike)
            else f"{name} must be a list, not {type(given).__name__}."
        )
    odd = next((item for item in items if not isinstance(item, kinds) or not str(item)), None)
    if odd is not None or None in items:
        raise ParameterError(f"{name} must be a list of texts, as in {name}=['one', 'two'], not of {odd!r}.")
    return list(items)


def _said(models: Models) -> list[list[str]]:
    """Per fine-tune what the terminal says of it."""
    heads = [[f"left out: {_without(names)}"] if names else [] for names in models.left]
    return [[*notes, *head] for notes, head in zip(models.notes, heads, strict=True)]


def _write(state: StateDict, models: Models, folder: Path, card: str) -> None:
    from huggingface_hub import save_torch_state_dict

    for path in companions(models.folder):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(models.folder / path, folder / path)
    # under the names of the pretrained model's files, which from_pretrained is known to read
    named = {models.files[name]: tensor for name, tensor in state.items()}
    save_torch_state_dict(named, folder, max_shard_size=_SHARD, metadata={"format": "pt"})
    (folder / "README.md").write_text(card, encoding="utf-8")


def _card(
    method: FusionMethod,
    settings: Mapping[str, Any],
    pretrained: str,
    finetuned: Sequence[str],
    models: Models,
    keep: Sequence[str],
    state: StateDict,
) -> str:
    lines = [
        "# A merged model",
        "",
        f"{method.card.title} ({code(method.card.name)} {code(json.dumps(dict(settings), default=str))}) of "
        f"{len(finetuned)} models fine-tuned from {code(pretrained)}: {num_parameters(state):,} parameters. Written by "
        "fusionlib; `from_pretrained` reads it.",
        "",
    ]
    for name, left, notes in zip(finetuned, models.left, models.notes, strict=True):
        lines.append(f"- {code(name)}{f', without {escaped(_without(left))}' if left else ''}")
        lines += [f"  - {escaped(note)}" for note in notes]
    lines += [
        "",
        f"Kept from the pretrained model: {', '.join(map(escaped, keep))} ({len(models.kept)} tensors)."
        if keep
        else "All of its tensors were merged.",
        *(f"\nOf the pretrained model: {escaped(note)}." for note in models.base_notes),
        "",
        "It was not evaluated. Configuration, tokenizer and processor are the pretrained model's.",
    ]
    return "\n".join(lines) + "\n"


def _without(names: Sequence[str]) -> str:
    return f"{len(names)} tensors: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
