"""Running variances that a merge takes below 0: an error, unless they are about to be measured again.

Adding task vectors can do that to a variance, as to any number; a BatchNorm would then answer NaN, the root of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from fusionlib.core import NegativeVariance

_UNCHECKED: ContextVar[bool] = ContextVar("variances are not looked at", default=False)


@contextmanager
def unchecked_variances() -> Iterator[None]:
    """In here, and in this thread, merges may give variances below 0, as when they are going to be measured again."""
    token = _UNCHECKED.set(True)
    try:
        yield
    finally:
        _UNCHECKED.reset(token)


def check_variances(state: Mapping[str, Tensor]) -> None:
    """Refuses a merged model whose running variances are below 0, but in ``unchecked_variances``.

    Args:
        state: in which a variance is called ``running_var`` and has a ``running_mean`` beside it.
    Raises: NegativeVariance, naming the tensor, how many there are, and what to do.
    """
    if _UNCHECKED.get():
        return
    for key, value in state.items():
        if key.endswith("running_var") and f"{key.removesuffix('var')}mean" in state:
            below = int((value < 0).sum())
            if below:
                raise NegativeVariance(
                    f"the merged model has {below} of {value.numel()} variances below 0 under {key!r}, the lowest "
                    f"{float(value.min()):.3g}; its BatchNorm would answer NaN. Measure them again on inputs "
                    '(batch_norm="reestimate" in fl.run and fl.fuse, which do as fl.reestimate_batch_norm does), or '
                    "use a smaller scale."
                )
