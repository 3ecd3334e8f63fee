"""Published checkpoints name their tensors in the styles of many years: all are brought to the present names.

What a name means is not decided here but by transformers, which is asked for the names, the tied weights and the
renamings of the architecture. Tensors stay where they are, in files mapped into memory; only their names change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionlib.core import KeyMismatch, StateDict
from fusionlib.zoo.architectures import Architecture, transforms

# what wrappers put before the names: DistributedDataParallel, torch.compile
_OUTER = ("module.", "_orig_mod.")
# and between them: torch.compile of parts, checkpointed activations, FSDP
_INNER = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


@dataclass(frozen=True)
class Styled:
    """A state dict under the present names.

    Attributes:
        state: present name -> tensor; names that the architecture has not are as the file has them.
        files: present name -> name in the file, without the prefixes of wrappers.
        notes: what was done, as ends of sentences.
        stacked: names of tensors that the architecture holds in another shape (experts in one tensor, queries, keys
            and values apart); they are as the file has them unless they were asked for ``apart``.
    """

    state: StateDict
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    stacked: frozenset[str] = frozenset()


def restyle(state: StateDict, known: Architecture | None, where: str, *, apart: bool = False) -> Styled:
    """A checkpoint under the present names of an architecture; tensors are shared, not copied.

    Args:
        known: None takes away the prefixes of wrappers alone.
        where: named in errors.
        apart: bring tensors that the architecture stacks or splits to its own shapes, in new memory.

    Raises: KeyMismatch, if two tensors of other values come to one name.
    """
    plain, notes = _unwrapped(state, where)
    if known is None:
        return Styled(plain, {key: key for key in plain}, tuple(notes))
    renamings, converters = transforms(known)
    plain = _inside(plain, known, renamings, converters, notes)
    found: StateDict = {}
    files: dict[str, str] = {}
    stacked: set[str] = set()
    for key, tensor in plain.items():
        name, converter = _present(key, known, renamings, converters)
        if converter is not None:
            stacked.add(name)
        _put(found, name, tensor, where)
        files.setdefault(name, key)
    if apart and stacked:
        found, files = _converted(plain, known), {}
        stacked = set()
    _untie(found, known, notes)
    constants = [name for name in found if name not in known.names | stacked and known.constants.search(name)]
    if constants:
        notes.append(f"{_count(constants)} left out that {known.name} does not store: {_some(constants)}")
    found = {name: tensor for name, tensor in found.items() if name not in constants}
    return Styled(found, {name: files.get(name, name) for name in found}, tuple(notes), frozenset(stacked))


def fits(styled: Styled, known: Architecture) -> bool:
    """Whether most of a file's tensors are the architecture's."""
    return 2 * sum(name in known.names or name in styled.stacked for name in styled.state) >= len(styled.state)


def _unwrapped(state: StateDict, where: str) -> tuple[StateDict, list[str]]:
    """Without the prefixes of wrappers, in whatever order they are nested."""
    taken: list[str] = []
    changed = True
    while changed and state:
        changed = False
        for prefix in _OUTER:
            if all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
                taken.append(prefix)
                changed = True
    plain: StateDict = {}
    for key, tensor in state.items():
        inner = _INNER.sub("", key)
        if inner != key and "inside names" not in taken:
            taken.append("inside names")
        _put(plain, inner, tensor, where)
    return plain, [f"prefixes of wrappers taken away: {', '.join(taken)}"] if taken else []


def _present(key: str, known: Architecture, renamings: list[Any], converters: list[Any]) -> tuple[str, Any]:
    """The present name of a file's name; if the tensor changes its shape, the pattern of what does it (name stays)."""
    from transformers.core_model_loading import apply_converters, apply_renamings

    simple = _prefixed(key, known)
    if simple in known.names:
        return simple, None
    renamed = apply_renamings(key, renamings)
    target, pattern = apply_converters(renamed, converters)
    if pattern is None:
        name = _prefixed(renamed, known)
        return (name, None) if name in known.names else (key, None)
    full = _prefixed(target, known)
    if full not in known.names:
        return key, None
    prefix = f"{known.model.base_model_prefix}."
    if full == target:
        return renamed, pattern
    return (prefix + renamed if full.startswith(prefix) else renamed.removeprefix(prefix)), pattern


def _prefixed(name: str, known: Architecture) -> str:
    """With the prefix of the backbone put before or taken away, if the architecture then has it."""
    prefix = known.model.base_model_prefix
    if not prefix or name in known.names:
        return name
    for other in (name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if other in known.names:
            return other
    return name


def _inside(
    state: StateDict, known: Architecture, renamings: list[Any], converters: list[Any], notes: list[str]
) -> StateDict:
    """Without the name of the attribute in which a user's own module held the model (``model.``, ``net.``)."""

    def hits(names: list[str]) -> int:
        found = (_present(name, known, renamings, converters) for name in names)
        return sum(pattern is not None or name in known.names for name, pattern in found)

    given, taken = state, ""
    for _ in range(3):
        if hits(list(state)):
            break
        firsts = dict.fromkeys(key.partition(".")[0] + "." for key in state if "." in key)
        inner = {prefix: [key[len(prefix) :] for key in state if key.startswith(prefix)] for prefix in firsts}
        if not inner:
            break
        most = max(inner, key=lambda prefix: (hits(inner[prefix]), len(inner[prefix])))
        if len(inner) > 1 and not hits(inner[most]):
            break
        state = {key.removeprefix(most): tensor for key, tensor in state.items()}
        taken += most
    if not hits(list(state)):
        return given
    if taken:
        notes.append(f"the prefix {taken} taken away")
    return state


def _converted(state: StateDict, known: Architecture) -> StateDict:
    """All tensors in the shapes of the architecture, as ``from_pretrained`` stacks and splits them."""
    from transformers.core_model_loading import apply_converters, dot_natural_key

    renamings, converters = transforms(known)
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    found: StateDict = {}
    waiting: dict[str, Any] = {}
    for key in sorted(state, key=dot_natural_key):
        name, pattern = _present(key, known, renamings, converters)
        if pattern is None:
            found[name] = state[key]
            continue
        target = apply_converters(name, converters)[0]
        entry = waiting.setdefault(target, copy.deepcopy(by_pattern[pattern]))
        entry.add_tensor(target, key, pattern, state[key])
    for target, entry in waiting.items():
        for name, value in entry.convert(target, model=known.model, config=known.model.config).items():
            found[name] = value[0] if isinstance(value, list) else value
    return found


def _untie(state: StateDict, known: Architecture, notes: list[str]) -> None:
    """Take away the second names of tied tensors; where only a second name is there, it becomes the first."""
    gone = []
    for second, first in known.ties.items():
        if second in state and first not in state:
            state[first] = state.pop(second)
            gone.append(second)
        elif second in state and same_tensor(state[second], state[first]):
            del state[second]
            gone.append(second)
    if gone:
        notes.append(f"second names of tied tensors taken together: {_some(gone)}")


def _put(state: StateDict, name: str, tensor: Tensor, where: str) -> None:
    if name in state and not same_tensor(state[name], tensor):
        raise KeyMismatch(
            f"{where} holds two different tensors that are both called {name!r} today. Save the model again with the "
            "version of transformers that it was trained with, then with save_pretrained of the present one."
        )
    state[name] = tensor


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or hold the same values."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same_memory = one.device.type != "meta" and one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return same_memory or torch.equal(one, other)


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
