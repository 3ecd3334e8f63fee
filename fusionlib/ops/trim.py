"""Task vectors with only their largest magnitudes kept, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fusionlib.core import StateDict
from fusionlib.ops.finite import is_constant, probably_finite
from fusionlib.ops.memory import grown
from fusionlib.ops.statedict import compute_dtype, fused_names
from fusionlib.ops.streaming import Block, blocks
from fusionlib.ops.thresholds import kth_magnitude

Trim = Callable[[Block], Tensor]
"""From a block to its trimmed task vectors, stacked: shape (T, n), zeros where trimmed. Valid until the next call."""


def task_vectors(block: Block) -> Tensor:
    """The block's task vectors, stacked: shape (T, n)."""
    return torch.stack(block.models).sub_(block.base)


def global_trim(pretrained: StateDict, finetuned: Sequence[StateDict], density: float) -> Trim:
    """Ranks each task vector as a whole: keeps floor(d * density) + 1 of its d entries, and all ties.

    This is the rule of the TIES authors: the threshold is the (d - floor(d * density))-th smallest magnitude
    and what reaches it stays. With density 1 everything stays. Infinite constants have no rank and do not count.
    """
    names = fused_names(pretrained)
    found, odd = _global_limits(pretrained, finetuned, names, density)
    constants = {name for name in odd if is_constant(name, pretrained, finetuned)}
    if constants:
        names = [name for name in names if name not in constants]
        found, _ = _global_limits(pretrained, finetuned, names, density)
    if not found:
        return task_vectors
    limits = {dtype: [_just_below(limit, dtype) for limit in found] for dtype in (torch.float32, torch.float64)}
    shrink = _Shrink()
    return lambda block: shrink(block, limits[block.base.dtype])


def _global_limits(
    pretrained: StateDict, finetuned: Sequence[StateDict], names: Sequence[str], density: float
) -> tuple[list[Tensor], set[str]]:
    """Every model's threshold, none where all stays; and the entries that are not finite in the first model."""
    total = sum(pretrained[name].numel() for name in names)
    rank = total - int(total * density)
    if rank == 0:
        return [], set()
    dtypes = _dtypes(pretrained, finetuned, names)
    odd: set[str] = set()
    first, *others = finetuned
    limits = [_kth(pretrained, first, dtypes, total, rank, odd)]
    return limits + [_kth(pretrained, state, dtypes, total, rank) for state in others], odd


def _dtypes(pretrained: StateDict, finetuned: Sequence[StateDict], names: Sequence[str]) -> dict[str, torch.dtype]:
    """In what dtype a kernel sees each entry, so that what is ranked is what is trimmed, bit for bit."""
    return {name: compute_dtype(pretrained[name], *(state[name] for state in finetuned)) for name in names}


def tensor_trim(pretrained: StateDict, finetuned: Sequence[StateDict], density: float) -> Trim:
    """Ranks within each tensor: keeps exactly floor(n * density) of its n entries, at least 1.

    Among equal magnitudes those with the smaller index stay.
    """
    limits: dict[str, list[float]] = {}
    surplus: dict[str, list[Tensor]] = {}
    for name in fused_names(pretrained):
        if pretrained[name].numel() == 0:
            continue  # there is no block of it either
        dtypes = _dtypes(pretrained, finetuned, [name])
        found = [_exact_limit(pretrained, state, dtypes, density) for state in finetuned]
        limits[name] = [limit for limit, _ in found]
        surplus[name] = [ties for _, ties in found]

    shrink = _Shrink()

    def trimmed(block: Block) -> Tensor:
        tau = shrink(block, limits[block.name])
        for row, ties in zip(tau, surplus[block.name], strict=True):
            row[ties[(ties >= block.start) & (ties < block.stop)] - block.start] = 0
        return tau

    return trimmed


class _Shrink:
    """From a block to its task vectors, zero up to each model's limit; every call writes to the same memory."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0)

    def __call__(self, block: Block, limits: Sequence[float]) -> Tensor:
        size = len(limits) * block.base.numel()
        self._scratch = grown(self._scratch, block.base, size)
        tau = self._scratch[:size].view(len(limits), -1)
        for row, model, limit in zip(tau, block.models, limits, strict=True):
            torch.sub(model, block.base, out=row)
            # zeroes |x| <= limit in one vectorised pass and lets NaN through; a boolean mask costs tenfold
            torch.ops.aten.hardshrink.out(row, limit, out=row)
        return tau


def _just_below(threshold: Tensor, dtype: torch.dtype) -> float:
    """The largest number of the dtype below, so that "greater than it" means "at least the threshold"."""
    nearest = threshold.to(dtype)
    if float(nearest) < float(threshold):
        return float(nearest)
    return float(torch.nextafter(nearest, torch.full_like(nearest, -1.0)))


def _kth(
    pretrained: StateDict,
    state: StateDict,
    dtypes: Mapping[str, torch.dtype],
    total: int,
    rank: int,
    odd: set[str] | None = None,
) -> Tensor:
    """The threshold; entries of which some magnitude is not finite are put into ``odd``."""
    widest = torch.float64 if torch.float64 in dtypes.values() else torch.float32
    scratch = torch.empty(0)

    def magnitudes(step: int) -> Iterator[Tensor]:
        nonlocal scratch
        for block in blocks(pretrained, [state], list(dtypes), step=step):
            base, model = (tensor.to(dtypes[block.name]) for tensor in (block.base, *block.models))
            scratch = grown(scratch, base, base.numel())
            size = torch.sub(model, base, out=scratch[: base.numel()]).abs_()
            if odd is not None and step == 1 and not probably_finite(size):
                odd.add(block.name)
            yield size.to(widest)

    return kth_magnitude(magnitudes, total, rank)


def _exact_limit(
    pretrained: StateDict, state: StateDict, dtypes: Mapping[str, torch.dtype], density: float
) -> tuple[float, Tensor]:
    """The limit above which entries stay, and the indices of those of the threshold's size that must not."""
    ((name, dtype),) = dtypes.items()
    total = pretrained[name].numel()
    kept = max(1, int(total * density))
    threshold = _kth(pretrained, state, dtypes, total, total - kept + 1)
    above, ties = 0, []
    for block in blocks(pretrained, [state], [name]):
        size = (block.models[0].to(dtype) - block.base.to(dtype)).abs_()
        above += int((size > threshold).sum())
        ties.append((size == threshold).nonzero().flatten() + block.start)
    return _just_below(threshold, dtype), torch.cat(ties)[kept - above :]
