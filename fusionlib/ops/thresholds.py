"""Exact order statistics of magnitudes without sorting: which value is the k-th smallest |task vector| entry.

A small sample brackets the answer; one pass over the data counts what lies below the bracket and collects
what lies in it; the answer is an order statistic of the few numbers collected (Floyd and Rivest 1975). The
counts prove that the bracket was right. Where it holds too much, because very many numbers are equal, another
pass looks whether one of its ends is the answer. If all that fails, the range of bit patterns is halved, which order
non-negative floating-point numbers as their values do. Always equal to ``torch.kthvalue``, bit for bit, at the
memory of one block and the bracket's content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fusionlib.ops.memory import grown

_SAMPLE = 1 << 18  # numbers; the bracket then holds about 1 % of the data
_COLLECT = 0.05  # give up collecting when the bracket holds more than this fraction (many equal values)
_ROWS = 8  # of the table in which a block is looked through: see _inside

Magnitudes = Callable[[int], Iterator[Tensor]]


def kth_magnitude(magnitudes: Magnitudes, total: int, k: int) -> Tensor:
    """The k-th smallest of ``total`` non-negative finite numbers that come in blocks.

    Args:
        magnitudes: ``magnitudes(step)`` starts a new pass over the same numbers in blocks of shape (n,),
            float32 or float64; with ``step`` > 1 over about every ``step``-th of them. A block is only read
            before the next one is asked for, so that all may lie in the same memory.
        total: how many numbers a pass yields.
        k: rank, from 1 (the smallest) to ``total``.
    Returns: a scalar tensor of the blocks' dtype, equal to ``torch.cat(blocks).kthvalue(k).values``.
    """
    if total <= _SAMPLE:
        return _all(magnitudes, 1).kthvalue(k).values
    low, high = _bracket(magnitudes, total, k)
    below, inside = _count_and_collect(magnitudes, low, high, int(total * _COLLECT) + _SAMPLE)
    if inside is not None and below < k <= below + inside.numel():
        return inside.kthvalue(k - below).values
    if inside is None:  # very many are equal, as the zeros of an adapter's update are
        for end, less, at_most in _ranks(magnitudes, (low, high)):
            if less < k <= at_most:
                return end
    return _bisect(magnitudes, k)


def _all(magnitudes: Magnitudes, step: int) -> Tensor:
    return torch.cat([block.clone() for block in magnitudes(step)])


def _bracket(magnitudes: Magnitudes, total: int, k: int) -> tuple[Tensor, Tensor]:
    step = max(1, total // _SAMPLE)
    sample = _all(magnitudes, step)
    n = sample.numel()
    # Six standard deviations of the binomial rank on either side: it fails about once in 10^9 smooth samples.
    rank, slack = k / total * n, 6 * (n * (k / total) * (1 - k / total)) ** 0.5 + 2
    low, high = int(rank - slack) + 1, int(rank + slack) + 1  # from 1; to sort the sample takes ten times as long
    zero, infinite = torch.zeros_like(sample[0]), torch.full_like(sample[0], float("inf"))
    return sample.kthvalue(low).values if low >= 1 else zero, sample.kthvalue(high).values if high <= n else infinite


def _count_and_collect(magnitudes: Magnitudes, low: Tensor, high: Tensor, most: int) -> tuple[int, Tensor | None]:
    below, held, found = 0, 0, []
    marks = low.new_empty(0)
    for block in magnitudes(1):
        n = block.numel()
        marks = grown(marks, low, 2 * n)
        # Marks are 1.0 or 0.0: to compare into booleans takes four times as long. Their sum is exact up to 2**24.
        reach, beyond = torch.ge(block, low, out=marks[:n]), torch.gt(block, high, out=marks[n : 2 * n])
        below += n - int(reach.sum())
        found.append(_inside(block, reach.sub_(beyond), beyond, low, high))
        held += found[-1].numel()
        if held > most:
            return 0, None
    return below, torch.cat(found)


def _inside(block: Tensor, marks: Tensor, spare: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The numbers of the block from ``low`` to ``high``, which are marked by 1.0, in any order; ``spare`` is memory.

    They are few. Read as a table of a few rows, most columns hold none, which one fast sum shows; only the others
    are looked at number by number.
    """
    table = block.numel() // _ROWS * _ROWS
    marked = torch.sum(marks[:table].view(_ROWS, -1), dim=0, out=spare[: table // _ROWS])
    columns = marked.nonzero().flatten()
    some = torch.cat([block[:table].view(_ROWS, -1).index_select(1, columns).flatten(), block[table:]])
    return some[(some >= low) & (some <= high)]


def _ranks(magnitudes: Magnitudes, values: tuple[Tensor, ...]) -> list[tuple[Tensor, int, int]]:
    """(value, how many numbers are less, how many are at most as large), of a few values in one pass."""
    less, at_most = [0] * len(values), [0] * len(values)
    for block in magnitudes(1):
        for index, value in enumerate(values):
            less[index] += int((block < value).sum())
            at_most[index] += int((block <= value).sum())
    return list(zip(values, less, at_most, strict=True))


def _bisect(magnitudes: Magnitudes, k: int) -> Tensor:
    """The same by halving the range of bit patterns: a pass per bit, no memory."""
    first = next(iter(magnitudes(1)))
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[first.dtype]
    low, high = 0, int(torch.full((), float("inf"), dtype=first.dtype).view(bits))
    while low < high:
        middle = (low + high) // 2
        at_most = sum(int((block.view(bits) <= middle).sum()) for block in magnitudes(1))
        low, high = (low, middle) if at_most >= k else (middle + 1, high)
    return torch.tensor(low, dtype=bits, device=first.device).view(first.dtype)
