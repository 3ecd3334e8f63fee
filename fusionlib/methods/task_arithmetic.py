"""Task arithmetic: add up what fine-tuning changed, scaled, and put it back on the pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from fusionlib.core import MethodCard, StateDict
from fusionlib.ops.coefficients import model_scales
from fusionlib.ops.constraints import PerModel
from fusionlib.ops.given import num_models
from fusionlib.ops.streaming import moved, stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="task_arithmetic",
    title="Task Arithmetic",
    cite="Ilharco2023",
    kind="merge",
    scope="element",
    identity={"scale": 1.0},
    grid=MappingProxyType({"scale": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)}),
)


@checked
def fuse(pretrained: StateDict, finetuned: Sequence[StateDict], *, scale: float | PerModel = 0.3) -> StateDict:
    """Pretrained weights plus ``scale`` times the sum of the task vectors.

    Args:
        scale: coefficient of the task vectors, the paper's lambda: one number for all models, or one per
            model in their order. No unit; 0 gives the pretrained model, negative numbers unlearn.
    Returns: a state dict with the keys, shapes and dtypes of ``pretrained``.
    Raises: ParameterError, if the number of scales is wrong or one is not finite;
        KeyMismatch, if a fine-tuned state dict has other keys or shapes; NonFiniteError, on NaN or Inf;
        NegativeVariance, if the scale takes a BatchNorm's running variance below 0.
    Source: Ilharco et al. 2023, "Editing models with task arithmetic", section 4 (learning via addition).
    Deviates: the paper searches the scale; 0.3 is its usual answer for eight tasks. Integer buffers come from
        the pretrained model (the authors skip int64 and uint8 only). mergekit weighs every model by itself.
    """
    scales = model_scales(scale, num_models(finetuned))
    return stream(pretrained, finetuned, lambda block: moved(block.base, block.models, scales, block.room))
