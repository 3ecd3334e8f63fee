"""Fusing block by block: the memory traffic of one pass over the models, and no full-size temporaries.

A kernel sees the same short stretch of every model at once and returns that stretch of the result. A block is
short enough that its temporaries stay in the cache, and long enough that the cost of a Python call, and of
handing its halves to two cores, does not show. Results are the same bits every time. Other block sizes give the
same bits where a number is only multiplied and added, as in an average; TIES-Merging may differ in the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusionlib.core import StateDict
from fusionlib.ops.finite import check_entry, is_constant, overflow, probably_finite
from fusionlib.ops.memory import fresh_like
from fusionlib.ops.statedict import check_compatible, compute_dtype, fused_names, tied_names
from fusionlib.ops.variances import check_variances

CPU_BLOCK = 1 << 20
GPU_BLOCK = 1 << 24


@dataclass(frozen=True)
class Block:
    """The stretch ``start:stop`` of one tensor (flattened) in the pretrained and all fine-tuned models.

    Attributes:
        base: shape (stop - start,), in the dtype to calculate in; a view or a copy, never to be written.
        models: one such tensor per fine-tuned model.
        target: the stretch of the fused model itself, where it has the dtype to calculate in.
    """

    name: str
    start: int
    stop: int
    base: Tensor
    models: tuple[Tensor, ...]
    target: Tensor | None = None

    @property
    def room(self) -> Tensor:
        """A tensor like ``base`` to put the result in: the target, or new memory."""
        return torch.empty_like(self.base) if self.target is None else self.target

    def of(self, state: StateDict) -> Tensor:
        """The same stretch of another state dict with contiguous tensors: a view to write to."""
        return state[self.name].view(-1)[self.start : self.stop]


Kernel = Callable[[Block], Tensor]


def stream(
    pretrained: StateDict,
    finetuned: Sequence[StateDict],
    kernel: Kernel,
    *,
    width: int = 1,
    reads_base: bool = True,
) -> StateDict:
    """The state dict whose every block is ``kernel(block)``.

    Args:
        kernel: a function from a block to its fused values, shape (stop - start,); it may put them in
            ``block.room``, which saves a pass over memory.
        width: how many numbers the kernel holds per number of the block (T if it stacks the models).
        reads_base: False if the result does not depend on ``block.base``, which is then checked apart.
    Raises:
        KeyMismatch: if the models do not fit together; ParameterError, NotApplicable: if they are no state dicts, or
            none of real numbers.
        NonFiniteError: if the kernel's result, or the pretrained model, holds NaN or Inf; it names the input
            that brought it in. (A kernel must let non-finite values of its inputs through.) An entry that is the same
            in all models is no error, and comes back as it is.
        NegativeVariance: if a running variance comes out below 0.
    """
    check_compatible(pretrained, finetuned)
    names = fused_names(pretrained)
    fused = fresh_like({key: pretrained[key] for key in names})
    with torch.no_grad():
        for name in names:
            for block in blocks(pretrained, finetuned, [name], width=width):
                target = block.of(fused)
                result = kernel(replace(block, target=target) if target.dtype == block.base.dtype else block)
                if result is not target:
                    target.copy_(result)
                if not probably_finite(target) or not (reads_base or probably_finite(block.base)):
                    if is_constant(name, pretrained, finetuned):
                        fused[name].copy_(pretrained[name])
                        break
                    _explain(block, pretrained, finetuned, target)
    ties = tied_names(pretrained)
    check_variances(fused)
    return {
        key: fused[ties.get(key, key)] if tensor.is_floating_point() else tensor.detach().clone()
        for key, tensor in pretrained.items()
    }


def mean(block: Block) -> Tensor:
    """The kernel of the plain average: the mean of the fine-tuned models."""
    first, *others = block.models
    if not others:
        return block.room.copy_(first)
    total = torch.add(first, others[0], out=block.room)  # one pass where copying first would be two
    for model in others[1:]:
        total += model
    return total.div_(len(block.models))


def moved(base: Tensor, models: Sequence[Tensor], scales: Sequence[float], out: Tensor) -> Tensor:
    """``base`` plus the sum of scale x (model - base), put into ``out``, which has the dtype to calculate in.

    As (1 - sum of scales) base + sum of scale x model: half the passes over memory of the differences, equal to them
    but for rounding in the last bits.
    """
    torch.mul(base.to(out.dtype), 1 - math.fsum(scales), out=out)
    for scale, model in zip(scales, models, strict=True):
        out.add_(model, alpha=scale)
    return out


def blocks(
    pretrained: StateDict,
    finetuned: Sequence[StateDict],
    names: Sequence[str],
    *,
    width: int = 1,
    step: int = 1,
) -> Iterator[Block]:
    """The blocks of the named tensors, in order; ``width`` as in :func:`stream`.

    With ``step`` > 1 a block holds every ``step``-th number of its stretch only: a cheap sample.
    """
    for name in names:
        flat = _flat(pretrained, finetuned, name)
        size = max(1, (CPU_BLOCK if flat[0].device.type == "cpu" else GPU_BLOCK) // width)
        for start in range(0, flat[0].numel(), size):
            yield _stretch(flat, name, start, min(start + size, flat[0].numel()), step)


def block_at(pretrained: StateDict, finetuned: Sequence[StateDict], name: str, start: int, stop: int) -> Block:
    """The block ``start:stop`` of one tensor, in the dtype to calculate in."""
    return _stretch(_flat(pretrained, finetuned, name), name, start, stop)


def _flat(pretrained: StateDict, finetuned: Sequence[StateDict], name: str) -> list[Tensor]:
    # once for all blocks: what is not contiguous is copied here
    return [state[name].detach().reshape(-1) for state in (pretrained, *finetuned)]


def _stretch(flat: Sequence[Tensor], name: str, start: int, stop: int, step: int = 1) -> Block:
    dtype = compute_dtype(*flat)
    base, *models = (tensor[start:stop:step].to(dtype) for tensor in flat)
    return Block(name, start, stop, base, tuple(models))


def _explain(block: Block, pretrained: StateDict, finetuned: Sequence[StateDict], target: Tensor) -> None:
    check_entry(block.name, pretrained, finetuned)
    if not bool(torch.isfinite(target).all()):
        raise overflow(block.name, target.dtype)
