"""Simple averaging (uniform model soup): the mean of the fine-tuned weights."""

from __future__ import annotations

from collections.abc import Sequence

from fusionlib.core import MethodCard, StateDict
from fusionlib.ops.streaming import mean, stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="simple_average",
    title="Simple Averaging",
    cite="Wortsman2022",
    kind="merge",
    scope="element",
    identity={},
)


@checked
def fuse(pretrained: StateDict, finetuned: Sequence[StateDict]) -> StateDict:
    """The mean of the fine-tuned models, weight by weight.

    Args:
        pretrained: gives keys, dtypes, integer buffers and ties; its weights do not enter the mean.
        finetuned: T state dicts of the same architecture.
    Returns: a state dict with the keys, shapes and dtypes of ``pretrained``.
    Raises: KeyMismatch, if a fine-tuned state dict has other keys or shapes; NonFiniteError, on NaN or Inf.
    Source: Wortsman et al. 2022, "Model soups", section 2 (uniform soup).
    Deviates: the soup's ingredients were fine-tuned on one task; here each on its own task.
    """
    return stream(pretrained, finetuned, mean, reads_base=False)
