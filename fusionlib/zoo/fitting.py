"""Fine-tunes under the names of their pretrained model: what is the same, what is left out, what can't be merged."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fusionlib.core import KeyMismatch, StateDict
from fusionlib.zoo.architectures import Architecture, belongs
from fusionlib.zoo.key_styles import Styled, same_tensor
from fusionlib.zoo.weight_files import some


@dataclass(frozen=True)
class Candidate:
    """A model that is to be fitted.

    Attributes:
        where: its folder, for messages.
        styled: its tensors.
        ties: second name -> first name of tensors that it ties.
    """

    where: str
    styled: Styled
    ties: Mapping[str, str]


@dataclass(frozen=True)
class Fitted:
    """A fine-tune with exactly the pretrained model's names.

    Attributes:
        state: name -> tensor.
        left: names in its file of what the pretrained model has not.
        notes: what else was done, as ends of sentences.
    """

    state: StateDict
    left: list[str]
    notes: list[str]


def fit(
    base: Styled, models: Sequence[Candidate], known: Architecture | None, kept: set[str]
) -> tuple[StateDict, list[Fitted], list[str]]:
    """The pretrained model and its fine-tunes, all under the same names.

    Args:
        known: the pretrained model's architecture; None compares names as they are.
        kept: names whose values stay the pretrained ones.

    Returns: the pretrained state, the fine-tunes, and the pretrained names that are left out: of tensors that the
        architecture has not, and that not all models hold.
    Raises: KeyMismatch, naming keys and shapes.
    """
    parts = [_fit(model, base, known, kept) for model in models]
    dropped = {name for _, _, _, missing in parts for name in missing}
    state = {name: tensor for name, tensor in base.state.items() if name not in dropped}
    fitted = [
        Fitted({name: base.state[name] if name in kept else found[name] for name in state}, sorted(left), notes)
        for found, left, notes, _ in parts
    ]
    return state, fitted, sorted(dropped)


def kept_names(base: Styled, models: Sequence[Candidate], keep: Sequence[str]) -> tuple[set[str], dict[str, bool]]:
    """The names that patterns choose, by their present names or those in the files; pattern -> whether it fits any."""
    names: dict[str, set[str]] = {}
    for styled in (base, *(model.styled for model in models)):
        for name in styled.state:
            names.setdefault(name, {name}).add(styled.files[name])
    found: set[str] = set()
    hits = dict.fromkeys(keep, False)
    for name, aliases in names.items():
        for pattern in keep:
            if any(fnmatch.fnmatchcase(alias, pattern) for alias in aliases):
                found.add(name)
                hits[pattern] = True
    return found, hits


def _fit(
    model: Candidate, base: Styled, known: Architecture | None, kept: set[str]
) -> tuple[StateDict, list[str], list[str], list[str]]:
    """Its tensors, what is left out of it, notes, and names of the pretrained model that both can do without."""
    wanted, files = base.state, model.styled.files
    state, left = _aligned(model.styled.state, wanted)
    notes = [*model.styled.notes, *_renamed(model.styled, base)]
    _tie(state, model, wanted, {} if known is None else known.ties, kept, notes)
    left += [name for name in state if name in kept]
    state = {name: tensor for name, tensor in state.items() if name not in kept}
    missing = [name for name in wanted if name not in state and name not in kept]
    extra = [name for name in state if name not in wanted]
    unused = []
    if known is not None:
        stacked = base.stacked | model.styled.stacked
        unused = [name for name in missing if name not in known.names and name not in stacked]
        missing = [name for name in missing if name not in unused]
        if not missing:  # else a part of another name may be what is missing
            foreign = [name for name in extra if not belongs(name, known)]
            left += [files.get(name, name) for name in foreign]
            extra = [name for name in extra if name not in foreign]
    _check(state, wanted, missing, extra, model.where)
    return state, left, notes, unused


def _tie(
    state: StateDict,
    model: Candidate,
    wanted: StateDict,
    ties: Mapping[str, str],
    kept: set[str],
    notes: list[str],
) -> None:
    """Second names of tied tensors where the pretrained model has them, and not where it has not."""
    for second, first in model.ties.items():
        if second in wanted and second not in state and first in state:
            state[second] = state[first]
            notes.append(f"{second} is {first}, to which it is tied")
    for second, first in ties.items():
        if second not in state or second in wanted or second in kept or first not in state:
            continue
        if not same_tensor(state[second], state[first]):
            raise KeyMismatch(
                f"the model in {model.where} holds values of its own under {second}, which in the pretrained model is "
                f"tied to {first}: one tensor can't be both. Merge models that both tie it or both do not; with "
                f"keep=[{second!r}] the pretrained model's is taken."
            )
        del state[second]


def _renamed(model: Styled, base: Styled) -> list[str]:
    """A note on what is called otherwise in the file than in the pretrained model's."""
    names = [name for name in model.state if name in base.files and model.files[name] != base.files[name]]
    if not names:
        return []
    example = names[0]
    return [
        f"{len(names)} tensor{'s have' if len(names) > 1 else ' has'} another name in its file, such as "
        f"{model.files[example]} for {base.files[example]}"
    ]


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


def _check(state: StateDict, wanted: StateDict, missing: list[str], extra: list[str], where: str) -> None:
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the pretrained {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    parts = [
        f"{title}: {some(listed, 5)}"
        for title, listed in (("missing", missing), ("other shapes", shapes), ("unexpected", extra))
        if listed
    ]
    if parts:
        raise KeyMismatch(
            f"the model in {where} does not fit the pretrained one. {'. '.join(parts)}. Merge fine-tunes of one "
            "pretrained model; tensors that must differ, such as heads, can be left as they are with `keep` (patterns "
            "such as classifier.*)."
        )
    kinds = [
        f"{key} is {_kind(state[key])}, the pretrained {_kind(wanted[key])}"
        for key in wanted
        if key in state and state[key].is_floating_point() != wanted[key].is_floating_point()
    ]
    if kinds:
        raise KeyMismatch(f"the model in {where} does not fit the pretrained one: {some(kinds, 5)}.")


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
