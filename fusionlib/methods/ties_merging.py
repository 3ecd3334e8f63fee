"""TIES-Merging: trim each task vector, elect a sign per weight, merge the values that agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from torch import Tensor

from fusionlib.core import MethodCard, StateDict
from fusionlib.ops.constraints import Above, AtMost
from fusionlib.ops.memory import grown
from fusionlib.ops.statedict import check_compatible
from fusionlib.ops.streaming import Block, block_at, stream
from fusionlib.ops.trim import global_trim, tensor_trim
from fusionlib.ops.values import checked

card = MethodCard(
    name="ties_merging",
    title="TIES-Merging",
    cite="Yadav2023",
    kind="merge",
    scope="model",
    identity={"density": 1.0, "scale": 1.0},
    grid=MappingProxyType({"density": (0.2,), "scale": (0.6, 1.0, 1.4, 1.8)}),
)


@checked
def fuse(
    pretrained: StateDict,
    finetuned: Sequence[StateDict],
    *,
    density: Annotated[float, Above(0), AtMost(1)] = 0.2,
    scale: float = 1.0,
    trim: Literal["global", "tensor"] = "global",
    combine: Literal["mean", "sum", "max"] = "mean",
    zero_sign: Literal["majority", "positive"] = "majority",
) -> StateDict:
    """Trim, elect signs, merge what agrees, add ``scale`` times the result to the pretrained weights.

    Args:
        density: fraction of each task vector that is kept, the largest magnitudes, in (0, 1].
        scale: coefficient of the merged task vector, the paper's lambda. No unit.
        trim: "global" ranks a whole task vector (floor(d * density) + 1 entries and all ties stay), "tensor"
            ranks within each tensor (exactly floor(n * density) entries stay, at least 1).
        combine: "mean" of the agreeing values, their "sum", or the "max" (largest magnitude) of them.
        zero_sign: where positive and negative cancel: "majority" of the elected signs, or "positive".
    Returns: a state dict with the keys, shapes and dtypes of ``pretrained``.
    Raises: ParameterError, KeyMismatch, NonFiniteError.
    Source: Yadav et al. 2023, Algorithm 1; the counting and tie rules are those of the authors' code.
    Deviates: nothing at the defaults, except that a tied majority elects nothing (the authors': negative).
        FusionBench's default is combine="sum", scale=0.3; mergekit and PEFT trim per tensor with
        zero_sign="positive", and mergekit weighs the models in the election.
    """
    check_compatible(pretrained, finetuned)
    trimmed = (global_trim if trim == "global" else tensor_trim)(pretrained, finetuned, density)

    scratch = torch.empty(0)

    def merged(block: Block, fill: float) -> Tensor:
        nonlocal scratch
        tau = trimmed(block)
        scratch = grown(scratch, tau, 3 * tau.shape[1])
        sign, undecided, spare = scratch[: 3 * tau.shape[1]].view(3, -1)
        torch.sum(tau, dim=0, out=sign).sign_()
        torch.eq(sign, 0, out=undecided)  # 1 where all is trimmed, or where positive and negative cancel
        if fill == 0:
            positive = torch.amax(tau, dim=0, out=spare)  # what cancels has a positive part
            election.count(block, sign, undecided.mul_(positive))
        else:
            sign.add_(undecided, alpha=fill)
        tau.mul_(sign).clamp_(min=0)  # now the magnitudes that agree with the sign; 0 elsewhere
        return _combine(tau, combine, block.room, spare).mul_(sign).mul_(scale).add_(block.base)

    if zero_sign == "positive":
        return stream(pretrained, finetuned, lambda block: merged(block, 1.0), width=len(finetuned))
    election = _Election()
    fused = stream(pretrained, finetuned, lambda block: merged(block, 0.0), width=len(finetuned))
    if election.balance:
        # The majority is known only now; exact cancellation is rare, so few blocks are merged again.
        majority = 1.0 if election.balance > 0 else -1.0
        for name, start, stop in election.undecided:
            block = block_at(pretrained, finetuned, name, start, stop)
            block.of(fused).copy_(merged(block, majority))
    return fused


class _Election:
    """Sums the elected signs over the whole vector, and remembers the blocks in which values cancel."""

    def __init__(self) -> None:
        self.balance = 0
        self.undecided: list[tuple[str, int, int]] = []

    def count(self, block: Block, sign: Tensor, cancelled: Tensor) -> None:
        self.balance += int(sign.sum())  # exact up to 2**24 signs
        if float(cancelled.sum()) > 0:
            self.undecided.append((block.name, block.start, block.stop))


def _combine(agreeing: Tensor, combine: str, room: Tensor, spare: Tensor) -> Tensor:
    if combine == "max":
        return torch.amax(agreeing, dim=0, out=room)
    total = torch.sum(agreeing, dim=0, out=room)
    return total if combine == "sum" else total.div_(torch.sum(agreeing.sign_(), dim=0, out=spare).clamp_(min=1))
