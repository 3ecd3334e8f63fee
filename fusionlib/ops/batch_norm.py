"""BatchNorm after a merge: its running statistics are averaged like weights, or measured again on inputs.

Averaged statistics are those of no model: the mean and variance of what a merged layer gives are not the mean of the
means and variances of what the layers it was merged from gave. Inputs, without labels, are enough to measure them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusionlib.core import NonFiniteError, ParameterError
from fusionlib.ops.modules import Batch
from fusionlib.ops.variances import check_variances


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """A copy whose BatchNorm statistics are the mean, over batches, of each batch's mean and unbiased variance.

    Args:
        model: left as it was. Only its BatchNorm layers run in training mode: dropout stays off.
        batches: keyword arguments of its forward; every batch counts the same.
    Returns: the copy, in evaluation mode; weights and ``num_batches_tracked`` are those of ``model``.
    Raises: ParameterError, if the model has no BatchNorm layer or there is no batch; NonFiniteError, if what a layer
        receives holds NaN or Inf; NegativeVariance, if another kind of layer keeps a variance below 0.
    Source: Izmailov et al. 2018, "Averaging weights leads to wider optima", section 3.2; of merged models Jordan et al.
        2023, "REPAIR".
    Deviates: nothing of the former's ``update_bn``. A batch's variance leaves out how the means of batches differ, so
        batches of one task each give a smaller variance than their mixture has.
    """
    copied = copy.deepcopy(model).eval()
    layers = batch_norms(copied)
    if not layers:
        raise ParameterError("the model has no BatchNorm layer, so there are no running statistics to measure again.")
    kept = {}
    for name, layer in layers.items():
        kept[name] = layer.momentum, None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean instead of a moving one
        layer.train()
    seen = 0
    for batch in batches:
        copied(**batch)
        seen += 1
    if not seen:
        raise ParameterError("BatchNorm's statistics need at least one batch of inputs, and `batches` holds none.")
    for name, layer in layers.items():
        momentum, tracked = kept[name]
        layer.momentum = momentum
        layer.num_batches_tracked = tracked
        if not all(bool(statistic.isfinite().all()) for statistic in layer.buffers()):
            raise NonFiniteError(
                f"the statistics of {name!r} that were measured on these inputs hold NaN or Inf; check the inputs, or "
                "merge with a smaller scale."
            )
    check_variances(copied.state_dict())
    return copied.eval()
