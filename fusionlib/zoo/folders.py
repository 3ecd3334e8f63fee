"""Any model that save_pretrained wrote, as a state dict under the names of a pretrained one: whole or PEFT adapter."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, FusionError, ParameterError, StateDict
from fusionlib.zoo.adapter_config import check_adapter, other_base
from fusionlib.zoo.adapter_merging import merge_into
from fusionlib.zoo.adapters import complete_alone, is_adapter
from fusionlib.zoo.architectures import Architecture, architecture, architecture_in, tied_otherwise
from fusionlib.zoo.fitting import Candidate, fit, kept_names
from fusionlib.zoo.key_styles import Styled, fits, restyle
from fusionlib.zoo.locate import locate
from fusionlib.zoo.quiet import silent_transformers
from fusionlib.zoo.vocabularies import differing
from fusionlib.zoo.weights import read_config, read_weights


@dataclass(frozen=True)
class Models:
    """A pretrained model and its fine-tunes, all under the same names.

    Attributes:
        folder: of the pretrained model.
        pretrained: its tensors.
        finetuned: those of each fine-tune.
        files: name -> name in the files of the pretrained model.
        kept: names whose values stay the pretrained ones.
        left: per fine-tune, the names of what was left out of it.
        notes: per fine-tune, what else is to be known of it, as ends of sentences.
        base_notes: the same of the pretrained model and of the choice of what is kept.
    """

    folder: Path
    pretrained: StateDict
    finetuned: list[StateDict]
    files: dict[str, str]
    kept: list[str]
    left: list[list[str]]
    notes: list[list[str]]
    base_notes: list[str]


def read_models(
    pretrained: str | PathLike[str], finetuned: Sequence[str | PathLike[str]], keep: Sequence[str] = ()
) -> Models:
    """A pretrained model and its fine-tunes from folders or hub ids, in whatever style of keys they were published.

    A model that holds the pretrained one below a prefix, as a classifier holds its backbone, gives that part; what
    is beside it, its head, is left out. The other way round, a bare backbone is put below the prefix.

    Args:
        keep: patterns (``classifier.*``) of names whose values stay the pretrained ones, whatever the fine-tunes hold.

    Raises: CheckpointError, UnknownName; KeyMismatch, naming keys and shapes; ParameterError, if ``keep`` fits nothing
        or everything.
    """
    source = locate(pretrained, "pretrained model")
    places = [locate(name, f"fine-tuned model {str(name)!r}") for name in finetuned]
    adapters = [is_adapter(place) for place in places]
    for place, adapter in zip(places, adapters, strict=True):
        if adapter:
            check_adapter(place)
    for folder in (source, *places):
        if (folder / "config.json").exists():
            read_config(folder)  # what is damaged is not copied, and may name other weights
    raw = read_weights(source)
    states, beside = [], []
    for place, adapter in zip(places, adapters, strict=True):
        state, more = _with_adapter(source, place, pretrained) if adapter else (read_weights(place), [])
        states.append(state)
        beside.append(more)
    known, base, candidates = _styled(source, raw, places, states, adapters)
    kept, base_notes = _kept(base, candidates, keep)
    state, fitted, dropped = fit(base, candidates, known, kept)
    base_notes += base.notes
    if dropped:
        names = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
        base_notes.append(
            f"{len(dropped)} tensors left out that not all models hold, and no {_name(known)} needs: {names}"
        )
    notes = [
        [*each.notes, *_notes(source, place, adapter, str(pretrained))]
        for each, place, adapter in zip(fitted, places, adapters, strict=True)
    ]
    return Models(
        folder=source,
        pretrained=state,
        finetuned=[each.state for each in fitted],
        files={name: base.files[name] for name in state},
        kept=sorted(kept & state.keys()),
        left=[sorted([*each.left, *more]) for each, more in zip(fitted, beside, strict=True)],
        notes=notes,
        base_notes=base_notes,
    )


def build_like(folder: Path) -> nn.Module:
    """The model in a folder, of the class its configuration names, float32, in evaluation mode.

    Raises: CheckpointError, if transformers has no such class, or the folder lacks some of its weights.
    """
    import transformers

    names = read_config(folder).get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    cls: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise CheckpointError(
            f"{folder} holds a model of class {name!r}, which transformers does not have; its config.json must name "
            "one under architectures, as save_pretrained writes it."
        )
    return load_complete(cls, folder)


def load_complete(cls: Any, folder: Path, optional: str = "", **options: Any) -> nn.Module:
    """``from_pretrained``, but without its silence about weights that are not there.

    Args:
        optional: weights outside of this prefix may be missing or of other shapes; empty means that none may.
        options: of ``from_pretrained``, such as ``num_labels``.
    """
    state = read_weights(folder)  # before transformers does: damaged, quantised, shards elsewhere
    settings = {"output_loading_info": True, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    try:
        with complete_alone(folder) as alone, silent_transformers(), torch.random.fork_rng(devices=[]):
            place = {"local_files_only": True, "trust_remote_code": False}
            model, about = cls.from_pretrained(str(alone), **settings, **place, **options)
            absent = sorted(key for key in about["missing_keys"] if key.startswith(optional))
            known = architecture(model.config, type(model).__name__) if absent else None
            if known is not None:  # what wrappers put before the names, transformers does not know
                styled = restyle(state, known, str(folder)).state
                model, about = type(model).from_pretrained(None, config=model.config, state_dict=styled, **settings)
                absent = sorted(key for key in about["missing_keys"] if key.startswith(optional))
    except FusionError:
        raise
    except Exception as error:  # files of anyone: transformers raises whatever it stumbles over
        raise CheckpointError(f"the model in {folder} can't be read: {str(error).strip()}") from error
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} weights of a {type(model).__name__}: {', '.join(absent[:5])}. Its "
            "config.json belongs to another model, or the weights are incomplete: save the model again."
        )
    shapes = [
        f"{key} is {tuple(found)}, needed {tuple(needed)}"
        for key, found, needed in sorted(about["mismatched_keys"])
        if key.startswith(optional)
    ]
    if shapes:
        raise CheckpointError(
            f"the model in {folder} has weights of other shapes than its config.json asks for: "
            f"{', '.join(shapes[:5])}. One of the two belongs to another model: save the model again."
        )
    return model.eval()


def _styled(
    source: Path, raw: StateDict, places: Sequence[Path], states: Sequence[StateDict], adapters: Sequence[bool]
) -> tuple[Architecture | None, Styled, list[Candidate]]:
    """The architecture if it matters, the pretrained model and its fine-tunes, all in one style of names.

    Where all files use the same names, transformers need not be asked what they mean: it takes seconds to import.
    """
    base = restyle(raw, None, str(source))
    styled = [restyle(state, None, str(place)) for state, place in zip(states, places, strict=True)]
    if all(each.state.keys() == base.state.keys() for each in styled):
        return None, base, [Candidate(str(place), each, {}) for place, each in zip(places, styled, strict=True)]
    known = architecture_in(source)
    known = known if known is None or fits(restyle(raw, known, str(source)), known) else None
    # an adapter was merged into the pretrained model, whose ties it has
    owns = [
        known if known is None or adapter else tied_otherwise(known, place)
        for place, adapter in zip(places, adapters, strict=True)
    ]
    every = [(raw, known, source), *zip(states, owns, places, strict=True)]
    base, *styled = [restyle(state, own, str(place)) for state, own, place in every]
    if any(each.stacked != base.stacked for each in styled):
        # experts, or queries, keys and values, are one tensor here and several there: all in the present shapes
        base, *styled = [restyle(state, own, str(place), apart=True) for state, own, place in every]
    if known is None:
        note = "its architecture is none that transformers has, so names were compared as they are"
        base = replace(base, notes=(*base.notes, note))
    ties: list[Mapping[str, str]] = [{} if own is None else own.ties for own in owns]
    return (
        known,
        base,
        [Candidate(str(place), each, tied) for place, each, tied in zip(places, styled, ties, strict=True)],
    )


def _with_adapter(source: Path, folder: Path, pretrained: str | PathLike[str]) -> tuple[StateDict, list[str]]:
    """The pretrained model with an adapter merged in, and the names of its tensors that have no place there."""
    model = build_like(source)
    beside = merge_into(model, folder, str(pretrained))
    return {key: value.detach() for key, value in model.state_dict().items()}, list(beside)


def _kept(base: Styled, candidates: list[Candidate], keep: Sequence[str]) -> tuple[set[str], list[str]]:
    """The names that ``keep`` chooses, and a note on patterns that choose none.

    Raises: ParameterError, if no pattern fits, one looks misspelt, or nothing would be left to merge.
    """
    kept, hits = kept_names(base, candidates, keep)
    names = {name for styled in (base, *(each.styled for each in candidates)) for name in styled.files.values()}
    idle = [pattern for pattern, hit in hits.items() if not hit]
    stems = {".".join(name.split(".")[:depth]) for name in names | base.state.keys() for depth in range(1, 9)}
    for pattern in idle:
        close = difflib.get_close_matches(pattern.removesuffix("*").rstrip("."), stems, n=1, cutoff=0.85)
        if close:
            raise ParameterError(
                f"keep: {pattern!r} fits no tensor of these models. Did you mean '{close[0]}"
                f"{'' if close[0] in names else '.*'}'?"
            )
    if idle and len(idle) == len(hits):
        parts = ", ".join(sorted({name.partition(".")[0] + ".*" for name in names if "." in name}))
        raise ParameterError(
            f"keep: {', '.join(map(repr, idle))} fits no tensor of these models. Their parts: {parts}."
        )
    if kept and not any(tensor.is_floating_point() for name, tensor in base.state.items() if name not in kept):
        raise ParameterError(
            f"keep: {', '.join(map(repr, keep))} keeps every tensor of the pretrained model, so nothing is left to "
            "merge. Name only those that must stay, such as classifier.*."
        )
    return kept, [f"`keep` has {pattern!r}, which fits none of their tensors" for pattern in idle]


def _notes(source: Path, place: Path, adapter: bool, pretrained: str) -> list[str]:
    """What is to be known of a fine-tune beside its weights."""
    different = differing(source, place)
    notes = []
    if different:
        notes.append(
            f"its vocabulary differs from the pretrained model's, whose tokenizer the result has: {different}; rows of "
            "the embedding that mean different tokens were merged"
        )
    if adapter:
        trained_on = other_base(place, pretrained)
        if trained_on:
            notes.append(f"it is an adapter that says it was trained on {trained_on}")
    return notes


def _name(known: Architecture | None) -> str:
    return "model" if known is None else known.name
