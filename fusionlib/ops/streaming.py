"""Fusing block by block: the memory traffic of one pass over the models, and no full-size temporaries.

A kernel sees the same short stretch of every model at once and returns that stretch of the result. A block is
short enough that its temporaries stay in the cache, and long enough that the cost of a Python call, and of
handing its halves to two cores, does not show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusionlib.core import NonFiniteError, StateDict
from fusionlib.ops.memory import fresh_like
from fusionlib.ops.statedict import check_compatible, compute_dtype, fused_names, tied_names

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
        KeyMismatch: if the models do not fit together.
        NonFiniteError: if the kernel's result, or the pretrained model, holds NaN or Inf; it names the input
            that brought it in. (A kernel must let non-finite values of its inputs through.)
    """
    check_compatible(pretrained, finetuned)
    names = fused_names(pretrained)
    fused = fresh_like({key: pretrained[key] for key in names})
    with torch.no_grad():
        for block in blocks(pretrained, finetuned, names, width=width):
            target = block.of(fused)
            result = kernel(replace(block, target=target) if target.dtype == block.base.dtype else block)
            if result is not target:
                target.copy_(result)
            if not _probably_finite(target) or not (reads_base or _probably_finite(block.base)):
                _explain(block, pretrained, finetuned, target)
    ties = tied_names(pretrained)
    return {
        key: fused[ties.get(key, key)] if tensor.is_floating_point() else tensor.clone()
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
        base = pretrained[name]
        size = max(1, (CPU_BLOCK if base.device.type == "cpu" else GPU_BLOCK) // width)
        for start in range(0, base.numel(), size):
            yield block_at(pretrained, finetuned, name, start, min(start + size, base.numel()), step=step)


def block_at(
    pretrained: StateDict, finetuned: Sequence[StateDict], name: str, start: int, stop: int, *, step: int = 1
) -> Block:
    """The block ``start:stop`` of one tensor, in the dtype to calculate in."""
    tensors = [state[name].detach().reshape(-1)[start:stop:step] for state in (pretrained, *finetuned)]
    dtype = compute_dtype(*tensors)
    base, *models = (tensor.to(dtype) for tensor in tensors)
    return Block(name, start, stop, base, tuple(models))


def _probably_finite(values: Tensor) -> bool:
    # One pass that hits the cache. NaN and Inf survive a sum; a sum that overflows is looked at closely later.
    half = values.dtype in (torch.float16, torch.bfloat16)
    return math.isfinite(values.sum(dtype=torch.float32 if half else None).item())


def _explain(block: Block, pretrained: StateDict, finetuned: Sequence[StateDict], target: Tensor) -> None:
    inputs = [("the pretrained model", pretrained)]
    inputs += [(f"finetuned[{index}]", state) for index, state in enumerate(finetuned)]
    for model, state in inputs:
        check_finite(model, block.name, state[block.name])
    if not bool(torch.isfinite(target).all()):
        raise NonFiniteError(
            f"the fused values of {block.name!r} overflow {target.dtype} though all inputs are finite; "
            "use a smaller scale, or convert the models to float32 or bfloat16 first."
        )


def check_finite(model: str, name: str, tensor: Tensor) -> None:
    """Raises NonFiniteError with the model, the key and the count, if the tensor holds NaN or Inf."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = tensor.numel() - int(finite.sum())
        raise NonFiniteError(
            f"{model} has {bad} of {tensor.numel()} values that are NaN or Inf under {name!r}; "
            "no fusion of it can be right. Check the checkpoint, or fine-tune it again."
        )
