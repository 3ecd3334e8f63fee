"""Pictures of scenes: a row per source of answers, a column per task, and black where nothing is known."""

import matplotlib.pyplot as plt
import pytest
import torch

from fusionlib.bench.scene_plots import scenes
from fusionlib.core import ParameterError


def test_rows_columns_and_unknown_pixels():
    pictures = torch.rand(2, 3, 4, 6)
    label = torch.zeros(2, 4, 6, dtype=torch.int64)
    depth, normal = torch.full((2, 1, 4, 6), 2.0), torch.zeros(2, 3, 4, 6)
    label[0, 0, 0], depth[0, 0, 0, 0], normal[:, 2] = -1, 0.0, 1.0
    normal[0, :, 0, 0] = 0.0
    truth = {"segmentation": label, "depth": depth, "normal": normal}
    figure = scenes(pictures, {"truth": truth, "model": truth})
    axes = figure.get_axes()
    assert len(axes) == 2 * 2 * 4 and [ax.get_title() for ax in axes[:4]] == ["picture", *truth]
    assert [text.get_text() for ax in axes for text in ax.texts] == ["truth", "model"] * 2
    assert axes[2].images[0].get_clim() == (0, 2.0)
    colours = [ax.images[0].to_rgba(ax.images[0].get_array())[0, 0, :3] for ax in axes[1:4]]
    assert all(max(colour) < 0.1 * (255 if colour.dtype == "uint8" else 1) for colour in colours)
    plt.close(figure)


def test_nothing_to_draw_is_said():
    with pytest.raises(ParameterError, match="nothing to draw"):
        scenes(torch.rand(0, 3, 2, 2), {})
