"""Figures: what is drawn where, for records with known numbers."""

import math

import matplotlib
import pytest
from bench_helpers import make_record, toy_suite

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import fusionlib as fl
from fusionlib.bench import plots, style, tables
from fusionlib.core import ParameterError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    with plt.rc_context():
        plots.use_style()
        yield
    plt.close("all")


def swept(name="scale", values=(0.5, 0.1, 0.3), **changes):
    return [
        make_record(counts={"a": (20 + int(100 * value), 100)}, hyperparameters={name: value}, split="val", **changes)
        for value in values
    ]


def draw(figure):
    """The figure's one panel, after a full rendering."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    (ax,) = figure.axes
    return ax


def words(artists):
    return [text.get_text() for text in artists]


def test_sweep_draws_the_averages_in_order_with_their_band():
    ax = draw(plots.sweep(swept(), "scale", mark=0.3))
    curve, marked = ax.lines
    assert list(curve.get_xdata()) == [0.1, 0.3, 0.5] and list(curve.get_ydata()) == pytest.approx([30, 50, 70])
    assert list(marked.get_xdata()) == [0.3, 0.3]
    (band,) = ax.collections
    # at 0.3: 1.959964 * sqrt(0.5 * 0.5 / 100) = 0.0979982
    height = [y for x, y in band.get_paths()[0].vertices if x == 0.3]
    assert min(height) == pytest.approx(50 - 9.79982) and max(height) == pytest.approx(50 + 9.79982)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("scale (the best is the highest tried)", "average accuracy, val (%)")
    assert to_hex(curve.get_color()) == style.COLOURS["merge"]


def test_sweep_draws_references_as_lines_with_names():
    levels = [make_record(name, {"a": (n, 100)}, split="val") for name, n in (("pretrained", 40), ("finetuned", 90))]
    ax = draw(plots.sweep(swept(), "scale", references=levels))
    assert [line.get_ydata()[0] for line in ax.lines[1:]] == [40, 90]
    assert words(ax.texts) == ["Pretrained", "Fine-tuned"]


def test_sweep_hangs_the_lower_of_two_near_names_below_its_line():
    near = (("pretrained", 40), ("finetuned", 88), ("multitask", 89))
    levels = [make_record(name, {"a": (n, 100)}, split="val") for name, n in near]
    ax = draw(plots.sweep(swept(), "scale", references=levels))
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    low, high = boxes["Fine-tuned"], boxes["Multi-task training"]
    assert not low.overlaps(high)
    assert low.y1 < ax.transData.transform((0, 88))[1] < ax.transData.transform((0, 89))[1] < high.y0


def test_sweep_names_every_reference_that_is_handed_over_once():
    levels = (
        make_record("task_arithmetic", {"a": (n, 100)}, split="val", hyperparameters={"scale": n}) for n in (40, 90)
    )
    ax = draw(plots.sweep(swept(), "scale", references=levels))
    assert words(ax.texts) == ["Task Arithmetic"] * 2 and len(ax.lines) == 3


def test_sweep_into_an_axis_that_is_there():
    figure, panels = plt.subplots(1, 2)
    assert plots.sweep(swept(), "scale", ax=panels[1]) is figure
    assert len(panels[1].lines) == 1 and not panels[0].lines


def test_sweep_over_seeds_draws_their_mean():
    counts = {(0.1, 0): 30, (0.2, 0): 50, (0.2, 1): 60, (0.1, 1): 50}
    made = [
        make_record(counts={"a": (n, 100)}, hyperparameters={"scale": scale}, seed=seed)
        for (scale, seed), n in counts.items()
    ]
    ax = draw(plots.sweep(made, "scale"))
    assert list(ax.lines[0].get_xdata()) == [0.1, 0.2]
    assert list(ax.lines[0].get_ydata()) == pytest.approx([40, 55])
    # the standard deviation of 30 and 50 is the root of (100 + 100) / 1
    assert max(y for x, y in ax.collections[0].get_paths()[0].vertices if x == 0.1) == pytest.approx(40 + 14.1421)


def test_sweep_over_two_is_a_map_with_gaps():
    made = [
        make_record("ties_merging", {"a": (n, 100)}, hyperparameters={"density": density, "scale": scale}, split="val")
        for n, density, scale in ((10, 0.2, 1.0), (20, 0.2, 0.5), (40, 0.5, 0.5))
    ]
    ax = draw(plots.sweep(made, "scale", "density"))
    assert words(ax.get_xticklabels()) == ["0.5", "1"] and words(ax.get_yticklabels()) == ["0.2", "0.5"]
    assert [(text.get_position(), text.get_text()) for text in ax.texts] == [
        ((0, 0), "20.0"),
        ((1, 0), "10.0"),
        ((0, 1), "40.0"),
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("scale", "density (the best is the highest tried)")


def test_sweep_over_words_is_a_map_too():
    settings = [{"trim": trim, "combine": combine} for trim in ("global", "tensor") for combine in ("mean", "sum")]
    made = [make_record("ties_merging", hyperparameters=setting) for setting in settings]
    ax = draw(plots.sweep(made, "trim", "combine"))
    assert words(ax.get_xticklabels()) == ["global", "tensor"] and words(ax.get_yticklabels()) == ["mean", "sum"]


def test_a_sweep_of_records_from_a_sweep():
    found = fl.sweep("task_arithmetic", toy_suite(), {"scale": [0.1, 0.4]})
    assert list(draw(plots.sweep(found, "scale")).lines[0].get_ydata()) == pytest.approx([25, 50])


@pytest.mark.parametrize(
    ("records", "names", "message"),
    [
        ([], ["scale"], "there are no records to draw"),
        (swept(), ["scael"], r"task_arithmetic has no hyper-parameter 'scael'. Did you mean 'scale'\?"),
        (swept(), ["scale", "density"], "no hyper-parameter 'density'"),
        ([*swept(), *swept("weights")], ["scale"], "no hyper-parameter 'scale'"),
        ([*swept(), *swept(method="other")], ["scale"], "differ in scale alone, but these differ in their method too"),
    ],
)
def test_what_is_no_sweep_is_refused(records, names, message):
    with pytest.raises(ParameterError, match=message):
        plots.sweep(records, *names)


def test_a_sweep_over_two_is_not_drawn_over_one():
    made = [make_record(hyperparameters={"scale": s, "density": d}) for s in (0.1, 0.2) for d in (0.1, 0.2)]
    with pytest.raises(ParameterError, match="differ in scale alone, but these differ in density too"):
        plots.sweep(made, "scale")


def test_heatmap_leaves_nan_empty_and_centres_negative_numbers():
    ax = draw(plots.heatmap([[1.0, math.nan], [-3.0, 0.5]], ["first", "second"], x_label="x", y_label="y"))
    assert words(ax.texts) == ["1.0", "-3.0", "0.5"]
    (image,) = ax.images
    assert image.get_clim() == (-3.0, 3.0) and image.get_cmap().name == "RdBu"
    assert words(ax.get_yticklabels()) == words(ax.get_xticklabels()) == ["first", "second"]
    # dark blue or red fields have white letters
    assert [text.get_color() for text in ax.texts] == ["#222222", "white", "#222222"]


@pytest.mark.parametrize(("matrix", "limits"), [([[1, 2], [3, 4]], (1, 4)), ([[2, 2]], (2, 2)), ([[0.0]], (0, 0))])
def test_heatmap_of_positive_numbers(matrix, limits):
    names = [f"row {index}" for index in range(len(matrix))]
    columns = [str(index) for index in range(len(matrix[0]))]
    ax = draw(plots.heatmap(matrix, names, columns=columns, fmt="{:.0f}"))
    assert ax.images[0].get_clim() == limits and len(ax.texts) == len(names) * len(columns)
    assert ax.texts[0].get_text() == f"{matrix[0][0]:.0f}" and ax.images[0].get_cmap().name == "Blues"


@pytest.mark.parametrize("matrix", [[], [[]], [[math.nan]]])
def test_heatmap_of_nothing(matrix):
    with pytest.raises(ParameterError, match="the matrix holds no numbers to draw"):
        plots.heatmap(matrix, [""] * len(matrix))


def test_dots_by_task_with_intervals():
    made = [
        make_record(counts={"a": (10, 10), "b": (5, 10)}),  # 10 of 10: an interval that ends where the dot is
        make_record("finetuned", {"a": (9, 10), "b": (0, 10)}),
    ]
    figure = plots.dots(made)
    ax = draw(figure)
    assert words(ax.get_yticklabels()) == ["a", "b"] and ax.get_xlabel() == "accuracy, test (%)"
    first, second = ax.containers  # references come first
    assert [c.get_label() for c in (first, second)] == ["Fine-tuned (each its own)", "Task Arithmetic"]
    assert list(second.lines[0].get_xdata()) == [100, 50]
    interval = second.lines[2][0].get_segments()[1][:, 0]
    assert list(interval) == pytest.approx([23.6593, 76.3407], abs=1e-3)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 2
    assert ax.yaxis_inverted()


def test_tradeoff_counts_in_models():
    made = [
        make_record("pretrained"),
        make_record("simple_ensemble", stored_parameters=80, active_parameters=80, fusion_seconds=0.25),
        make_record(selected_on="val"),
    ]
    spent = {cost: draw(plots.tradeoff(made, cost)) for cost in ("stored", "active", "seconds")}
    assert [c.lines[0].get_xdata()[0] for c in spent["stored"].containers] == [1, 8, 1]
    assert [c.lines[0].get_ydata()[0] for c in spent["stored"].containers] == pytest.approx([70, 70, 70])
    assert [c.lines[0].get_xdata()[0] for c in spent["seconds"].containers] == [0.5, 0.25, 0.5]
    assert spent["active"].get_xlabel() == "parameters read per prediction (models)"
    looks = [c.lines[0] for c in spent["stored"].containers]
    # hollow where hyper-parameters are defaults that nobody chose
    assert [line.get_markerfacecolor() == "none" for line in looks] == [False, True, False]
    with pytest.raises(ParameterError, match="cost = 'memory' is not known; allowed: 'stored', 'active', 'seconds'"):
        plots.tradeoff(made, "memory")


@pytest.mark.parametrize("plot", [plots.dots, plots.tradeoff])
def test_no_records(plot):
    with pytest.raises(ParameterError, match="no records to draw; run the method chapters"):
        plot([])


def test_a_method_looks_the_same_everywhere():
    looks = [style.marker(name) for name in (*fl.methods.names(), "pretrained", "finetuned", "multitask")]
    assert len(set(looks)) == len(looks)
    assert style.marker("a method of my own") == style.marker("a method of my own")
    assert {style.colour(kind) for kind in ("ensemble", "merge", "mix", "reference")} == set(style.COLOURS.values())


def test_bars_write_their_numbers():
    figure = plots.bars({"one": 1.0, "two": -2.5}, "points", fmt="{:+.1f}")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["+1.0", "-2.5"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "two"]
    assert ax.get_xlabel() == "points"
    with pytest.raises(ParameterError, match="no values"):
        plots.bars({})


def test_gaps_are_points_below_the_fine_tuned_models():
    made = [
        make_record("finetuned", {"a": (9, 10), "b": (8, 10)}),
        make_record("pretrained", {"a": (2, 10), "b": (3, 10)}),
        make_record(counts={"a": (7, 10), "b": (6, 10)}),
    ]
    figure = plots.gaps(made)
    (ax,) = figure.axes
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    ceiling = next(r for r in made if r.method == "finetuned").accuracy
    best = max((r for r in made if r.method != "finetuned"), key=lambda r: r.average)
    assert names[0].startswith(tables.title(best.method)), "the best average stands on top"
    written = [text.get_text() for text in ax.texts][: len(ceiling)]
    assert written == [f"{100 * (best.accuracy[t] - ceiling[t]):+.0f}" for t in ceiling]
    with pytest.raises(ParameterError, match="fine-tuned"):
        plots.gaps([r for r in made if r.method != "finetuned"])


def test_versus_shows_the_normalised_accuracy_of_the_tables():
    def suite(counts, tuning):
        made = {"finetuned": 80, "pretrained": 10, **counts}
        return [make_record(name, {"a": (n, 100)}, tuning=tuning) for name, n in made.items()]

    full = suite({"simple_average": 40, "regmean": 60, "fisher_merging": 20}, "full")
    lora = suite({"simple_average": 60, "regmean": 20}, "lora")
    (ax,) = plots.versus(full, lora, "full", "LoRA").axes
    drawn = {container.get_label(): container[0].get_xydata().tolist() for container in ax.containers}
    assert set(drawn) == {"RegMean", "Simple Averaging"}
    assert drawn["RegMean"] == [pytest.approx([75, 25])] and drawn["Simple Averaging"] == [pytest.approx([50, 75])]
    with pytest.raises(ParameterError, match="no method is in both"):
        plots.versus(full, suite({}, "lora"))
    with pytest.raises(ParameterError, match="their record is missing"):
        plots.versus(full, lora[1:])
