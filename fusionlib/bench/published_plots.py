"""Figures of published numbers. They draw what they are given; nothing is computed here but places."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fusionlib import methods
from fusionlib.bench.published import known_methods
from fusionlib.bench.style import GREY, colour, marker

Scores = Mapping[str, Mapping[str, float]]


def order(kept: Scores, mixes: tuple[str, ...] = ()) -> Figure:
    """Methods over models: their scores on the left, their places on the right, the best on top.

    Args:
        kept: model -> method -> score in percent; the same methods for every model.
        mixes: methods to draw in the colour of mixtures. Those that this library does not have are hollow.
    """
    models = list(kept)
    last = sorted(kept[models[-1]], key=kept[models[-1]].__getitem__, reverse=True)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.9), width_ratios=(1, 1.1))
    for index, name in enumerate(last):
        card = known_methods().get(name, {}).get("card")
        hue = colour("mix" if name in mixes else "merge")
        look = {
            "color": hue,
            "marker": marker(card) if card in methods.names() else "o",
            "mfc": hue if card in methods.names() else "none",
            "lw": 1.3,
        }
        left.plot(models, [kept[model][name] for model in models], **look)
        right.plot(models, places(kept, name), **look)
        right.annotate(
            name, (len(models) - 1, index + 1), (10, 0), textcoords="offset points", va="center", fontsize="small"
        )
    left.set(ylabel="accuracy kept (%)")
    right.set(ylabel="place", yticks=range(1, len(last) + 1))
    right.invert_yaxis()
    for ax in (left, right):
        ax.grid(axis="x", visible=False)
    return fig


def places(kept: Scores, name: str) -> list[int]:
    """The place of a method in each column of scores, 1 for the best."""
    return [1 + sum(value > scores[name] for value in scores.values()) for scores in kept.values()]


def scales(curves: Mapping[tuple[str, str], Mapping[float, float]], x_label: str = "scale") -> Figure:
    """One panel per suite with the curves of its methods, the best value of each encircled.

    Args:
        curves: (suite, method) -> hyper-parameter -> average accuracy in percent.
    """
    suites = list(dict.fromkeys(suite for suite, _ in curves))
    names = list(dict.fromkeys(method for _, method in curves))
    fig, axes = plt.subplots(1, len(suites), figsize=(9.4, 3.1), sharex=True, squeeze=False)
    for (suite, method), found in curves.items():
        ax = axes[0, suites.index(suite)]
        hue, best = f"C{names.index(method)}", max(found, key=found.__getitem__)
        ax.plot(list(found), list(found.values()), marker="osDv"[names.index(method) % 4], ms=4.5, color=hue)
        ax.plot(best, found[best], "o", ms=12, color=GREY, mfc="none")
        ax.set_title(suite)
    for index, method in enumerate(names):
        axes[0, 0].plot([], [], marker="osDv"[index % 4], color=f"C{index}", label=method)
    axes[0, 0].set(ylabel="average accuracy (%)")
    axes[0, len(suites) // 2].set(xlabel=x_label)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return fig


def pruning(curves: Mapping[str, Mapping[float, float]]) -> Figure:
    """Accuracy over the share of numbers kept, from all of them on the left to none on the right, logarithmic.

    Args:
        curves: model -> share that was pruned, in [0, 1] -> average accuracy in percent.
    """
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    for name, found in curves.items():
        ax.plot([100 * (1 - share) for share in found], list(found.values()), marker="o", ms=4, label=name)
    ax.set_xscale("symlog", linthresh=0.1, linscale=0.6)
    ax.set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    ax.invert_xaxis()
    ax.set(xlabel="numbers kept of each task vector (%)", ylabel="average accuracy (%)")
    ax.legend()
    return fig


def room(panels: Mapping[str, Mapping[str, Scores]]) -> Figure:
    """Per task the way from one line of scores to another, and where the lines between them stand on it.

    Args:
        panels: title -> line -> task -> score in percent. The first line of a panel is the floor, the last the
            ceiling; those between them, three at most, get a marker each. All panels have the same lines.
    """
    most = max(len(next(iter(lines.values()))) for lines in panels.values())
    fig, axes = plt.subplots(1, len(panels), figsize=(9.4, 0.9 + 0.32 * most), squeeze=False)
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        (floor, low), *between, (ceiling, high) = lines.items()
        tasks = list(low)
        at = range(len(tasks))
        ax.hlines(at, [low[t] for t in tasks], [high[t] for t in tasks], color=GREY, lw=1.2, zorder=1)
        ax.plot([low[t] for t in tasks], at, "|", color=GREY, ms=11, mew=2, label=floor)
        for index, (name, scores) in enumerate(between):
            ax.plot([scores[t] for t in tasks], at, "os^"[index], ms=6, label=name)
        ax.plot([high[t] for t in tasks], at, "D", color=GREY, mfc="none", ms=6, mew=1.6, label=ceiling)
        ax.set(title=title, xlabel="accuracy (%)", yticks=at, yticklabels=tasks)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig
