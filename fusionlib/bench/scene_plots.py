"""Pictures of scenes with what is true, and what models say, of every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fusionlib.bench.style import SIZES
from fusionlib.core import ParameterError

_UNKNOWN = "#111111"


def scenes(pictures: Tensor, answers: Mapping[str, Mapping[str, Tensor]], *, far: float | None = None) -> Figure:
    """Per scene a row for every source of answers, and a column for the picture and for every task.

    Args:
        pictures: (n, 3, H, W), in [0, 1].
        answers: source ("truth", a model's name) -> task -> int64 classes (n, H, W), -1 for none, or depths
            (n, 1, H, W), 0 for none, or normals (n, 3, H, W).
        far: the depth, in metres, that the darkest colour stands for; by default the largest in the first source.
    Raises: ParameterError, for no pictures or no answers.
    """
    if not len(pictures) or not answers:
        raise ParameterError("there is nothing to draw; give at least one picture and one source of answers.")
    tasks = list(next(iter(answers.values())))
    depths = [values for values in next(iter(answers.values())).values() if values.ndim == 4 and values.shape[1] == 1]
    far = max((float(values.max()) for values in depths), default=1.0) if far is None else far
    rows, columns = len(pictures) * len(answers), 1 + len(tasks)
    height, width = pictures.shape[-2:]
    wide = SIZES["wide"][0]
    fig, axes = plt.subplots(rows, columns, figsize=(wide, wide / columns * height / width * rows), squeeze=False)
    for index, picture in enumerate(pictures):
        for place, (source, given) in enumerate(answers.items()):
            line: Sequence[Axes] = axes[index * len(answers) + place]
            for ax in line:
                ax.set_axis_off()
            if place == 0:
                line[0].imshow(picture.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
            line[1].annotate(
                source, (-0.04, 0.5), xycoords="axes fraction", rotation=90, ha="right", va="center", fontsize="small"
            )
            for ax, task in zip(line[1:], tasks, strict=True):
                _draw(ax, given[task][index].detach().cpu(), far)
    for ax, name in zip(axes[0], ["picture", *tasks], strict=True):
        ax.set_title(name, fontsize="small")
    return fig


def _draw(ax: Axes, values: Tensor, far: float) -> None:
    ax.set_facecolor(_UNKNOWN)
    if values.ndim == 2:
        colours = plt.get_cmap("tab10").with_extremes(under=_UNKNOWN)
        ax.imshow(values.numpy(), cmap=colours, vmin=-0.5, vmax=9.5, interpolation="nearest")
    elif len(values) == 1:
        known = torch.where(values[0] > 0, values[0], torch.nan)
        ax.imshow(known.numpy(), cmap=plt.get_cmap("viridis_r").with_extremes(bad=_UNKNOWN), vmin=0, vmax=far)
    else:
        known = values.abs().sum(dim=0, keepdim=True) > 0
        ax.imshow(torch.where(known, (values + 1) / 2, 0.07).clamp(0, 1).permute(1, 2, 0).numpy())
