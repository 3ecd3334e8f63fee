"""Published numbers: read as they are, grouped into lines, checked, and joined with records of ours."""

import dataclasses
import json
import math
import re

import matplotlib.pyplot as plt
import pytest

import fusionlib as fl
from fusionlib.bench import published, published_plots
from fusionlib.bench.provenance import REFERENCES
from fusionlib.bench.published import lines
from fusionlib.bench.published_records import differences, reproduced
from fusionlib.bench.published_tables import NOT_RUN, Folded, against
from fusionlib.core import ParameterError, Record

TASKS = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


@pytest.fixture(autouse=True)
def figures():
    yield
    plt.close("all")


B32 = "clip-vit-b32/TA8"


def line(method, suite=B32):
    (found,) = [entry for entry in lines(suite) if entry.method == method]
    return found


def record(method="task_arithmetic", **changes):
    """A record as if the published suite had been run here: 60 % on every task."""
    values = {
        **{field.name: None for field in dataclasses.fields(Record)},
        "key": "k",
        "method": method,
        "kind": "merge",
        "hyperparameters": {"scale": 0.3},
        "backbone": "openai/clip-vit-base-patch32",
        "tasks": TASKS,
        "tuning": "full",
        "split": "test",
        "limit": None,
        "counts": dict.fromkeys(TASKS, (60, 100)),
        "needs": (),
        "provenance": {"created": "2026-01-01"},
    }
    return Record(**{**values, **changes})


def test_a_number_is_read_with_its_source():
    (row,) = published.select(
        published.read("clip_vit_b32_ta8"), setting="docs HEAD", method="Task Arithmetic", task="sun397"
    )
    assert (row.value, row.metric, row.suite) == (57.1, "accuracy_x100", "clip-vit-b32/TA8")
    assert row.source.startswith("fusion_bench@54c9e8c(2026-08):docs/modelpool/clip_vit.md:")


def test_every_row_has_a_finite_value_and_a_commit():
    rows = published.read()
    assert len(rows) == sum(len(published.read(name)) for name in {row.file for row in rows}) > 7000
    for row in rows:
        assert math.isfinite(row.value)
        assert re.match(
            r"fusion_bench@(54c9e8c|038ccc9|01b2cbf)\(|https://github.com/tanganke/fusion_bench/pull/", row.source
        )


def test_the_readme_names_every_file():
    text = (published.FOLDER / "README.md").read_text(encoding="utf-8")
    for path in published.FOLDER.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text


def test_errors_name_what_there_is():
    with pytest.raises(ParameterError, match=r"in a file 'gpt3'\. Did you mean 'gpt2'"):
        published.read("gpt3")
    with pytest.raises(ParameterError, match=r"no column 'taks' to select by\. Did you mean 'task'"):
        published.select([], taks="mnist")
    with pytest.raises(ParameterError, match=r"says nothing of 'alpha'"):
        published.number(line("RegMean"), "alpha")


def test_lines_of_a_table():
    entry = line("Task Arithmetic")
    assert list(entry.values) == [task.replace("-", "_") for task in TASKS]
    assert (entry.published, entry.card, entry.short_setting) == (68.0, "task_arithmetic", "λ = 0.3")
    assert entry.mean == pytest.approx((57.1 + 55.7 + 64.9 + 76.7 + 77.9 + 68.5 + 96.1 + 47.2) / 8)
    assert published.number(entry, "lambda") == 0.3 and entry.agrees
    assert line("WUDI-Merging").card is None
    assert published.is_reference(line("Fine-tuned (STL)")) and not published.is_reference(entry)


def test_averages_that_do_not_follow_are_those_listed_as_anomalies():
    found = {(e.source, e.published) for e in published.entries(published.read()) if not e.agrees}
    listed = published.select(published.read("anomalies"), method="published_average")
    assert found == {(row.source, row.value) for row in listed} and len(listed) == 5
    entry = line("Simple Average", suite="flan-t5-base/GLUE8 LoRA-16")
    assert (entry.published, entry.mean) == (78.2, pytest.approx(79.4875))


def test_names_of_methods_are_published_ones_and_cards_are_ours():
    methods = {row.method for row in published.read()}
    ours = {*fl.methods.names(), *REFERENCES, "we_moe"}
    for name, facts in published.known_methods().items():
        assert name in methods
        assert facts["card"] in ours
        assert set(facts) <= {"card", "lambda", "hyperparameters"}


def test_names_of_suites_are_published_ones():
    known = json.loads((published.FOLDER / "suites.json").read_text(encoding="utf-8"))
    suites = {row.suite for row in published.read()}
    for name, facts in known.items():
        assert name in suites and ("title" in facts or facts["same as"] in known)
    same = published.suite_facts("clip-vit-base-patch32/TA8")
    assert same == published.suite_facts("clip-vit-b32/TA8") and same["title"] == "CLIP ViT-B/32, eight tasks"
    assert published.suite_facts("mistral-7b/gsm8k") == {}


def test_a_record_of_the_same_measurement_is_found():
    entry, ours = line("Task Arithmetic"), record()
    assert reproduced(entry, [ours]) is ours
    assert differences(entry, ours)["stanford_cars"] == pytest.approx(60 - 55.7)
    newer = record(provenance={"created": "2026-02-01"})
    assert reproduced(entry, [newer, ours]) is newer


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "tiny-clip"},
        {"tuning": "lora"},
        {"limit": 64},
        {"split": "val"},
        {"tasks": TASKS[:7], "counts": dict.fromkeys(TASKS[:7], (1, 2))},
        {"hyperparameters": {"scale": 0.4}},
        {"method": "ties_merging"},
    ],
)
def test_other_measurements_are_not_mixed_in(change):
    assert reproduced(line("Task Arithmetic"), [record(**change)]) is None


def test_hyperparameters_that_the_publication_implies():
    entry = line("Ties-Merging")
    mean, added = ({"scale": 0.3, "combine": name} for name in ("mean", "sum"))
    assert reproduced(entry, [record("ties_merging", hyperparameters=mean)]) is None
    assert reproduced(entry, [record("ties_merging", hyperparameters=added)]) is not None
    assert reproduced(line("WUDI-Merging"), [record("simple_average", hyperparameters={})]) is None


def test_table_of_published_numbers_beside_ours():
    table = against(lines(B32), [record(), record(backbone="tiny-clip", method="regmean", hyperparameters={})])
    frame = table.to_frame()
    assert frame.loc["Task Arithmetic (λ = 0.3)", "Here"] == "60.0 (-8.0)"
    assert frame.loc["Task Arithmetic (λ = 0.3)", "mnist"] == "96.1 (-36.1)"
    assert (frame.drop("Task Arithmetic (λ = 0.3)")["Here"] == NOT_RUN).all()
    assert list(frame.index[:3]) == ["Pre-trained", "Fine-tuned (STL)", "Traditional MTL"] and table.groups == [3]
    best = {row[0].text: row[1].mark for row in table.rows}
    assert best["Weight-Ensembling MoE"] == "best" and best["Fine-tuned (STL)"] == ""
    assert table.note.startswith("CLIP ViT-B/32, eight tasks. Published numbers, in %. In brackets: ours minus")


def test_averages_that_were_not_published_have_an_asterisk():
    sweep = published.entries(published.select(published.read("hyperparameter_sweeps"), setting="HEAD; lambda=0.5"))
    table = against([entry for entry in sweep if entry.suite.startswith("flan")])
    assert table.to_frame()["Average"].tolist() == ["69.8*"] and "* computed from its row" in table.note


def test_tables_refuse_what_does_not_fit():
    with pytest.raises(ParameterError, match="no published numbers to show"):
        against([])
    with pytest.raises(ParameterError, match="other tasks than"):
        against([line("RegMean"), line("RegMean", suite="gpt2/GLUE7")])


def test_folded_tables_say_what_they_hide():
    shown = Folded("More & more", fl.tables.plain(["a"], [["b"]]))
    assert shown._repr_html_().startswith("<details><summary>More &amp; more</summary><div")
    assert shown._repr_markdown_().startswith("**More & more**\n\n| a |") and repr(shown) == "More & more\na\nb"


def test_lines_leave_sweeps_out_unless_asked():
    assert len([entry for entry in lines("gpt2/GLUE7") if entry.method == "Task Arithmetic"]) == 1
    assert len(lines("gpt2/GLUE7", file="hyperparameter_sweeps")) == 22
    assert lines("nowhere") == []


def test_a_curve_is_sorted_and_as_exact_as_it_can_be():
    swept = published.curve("hyperparameter_sweeps", "flan-t5-base/GLUE8 LoRA-16", "Task Arithmetic")
    assert list(swept) == [index / 10 for index in range(11)]
    assert swept[0.5] == pytest.approx(69.8)  # its average was not published
    magmax = published.curve("magmax", "clip-vit-base-patch32/TA8", "MagMax", "ind-ft")
    assert max(magmax, key=magmax.get) == 0.6 and magmax[0.6] == 71.1


def test_only_one_method_was_measured_again():
    pairs = published.revisions()
    assert {old.method for old, new in pairs if old.values != new.values} == {"RegMean"}
    assert all(old.suite == new.suite and old.method == new.method for old, new in pairs) and len(pairs) == 108


def test_places_and_figures():
    kept = {"small": {"RegMean": 70.0, "WUDI-Merging": 80.0}, "large": {"RegMean": 90.0, "WUDI-Merging": 85.0}}
    assert published_plots.places(kept, "RegMean") == [2, 1]
    left, right = published_plots.order(kept, mixes=("WUDI-Merging",)).axes
    assert {text.get_text() for text in right.texts} == {"RegMean", "WUDI-Merging"}
    assert [list(line.get_ydata()) for line in left.lines] == [[70, 90], [80, 85]]
    assert [line.get_markerfacecolor() for line in left.lines][1] == "none"  # no method of ours
    panels = published_plots.scales({("a", "x"): {0.0: 1.0, 1.0: 2.0}, ("b", "x"): {0.0: 3.0, 1.0: 2.0}}).axes
    assert [ax.get_title() for ax in panels] == ["a", "b"]
    assert [float(ax.lines[1].get_xdata()[0]) for ax in panels] == [1.0, 0.0]
    (ax,) = published_plots.pruning({"a": {0.0: 90.0, 0.9: 80.0, 1.0: 10.0}}).axes
    assert list(ax.lines[0].get_xdata()) == pytest.approx([100, 10, 0]) and ax.xaxis_inverted()


def test_rank_correlation_by_hand():
    one = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0}
    assert published.rank_correlation(one, {**one, "e": 0.0}) == pytest.approx(1)
    assert published.rank_correlation(one, {name: -value for name, value in one.items()}) == pytest.approx(-1)
    # ranks 1, 2, 3, 4 against 1.5, 1.5, 3, 4: covariance 4.5 over the root of 5 * 4.5
    assert published.rank_correlation(one, {**one, "b": 1.0}) == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    with pytest.raises(ParameterError, match="two different values are needed"):
        published.rank_correlation(one, {"a": 1.0, "b": 1.0})


def test_room_draws_every_line_of_every_panel():
    floor, middle, top = {"x": 10.0, "y": 20.0}, {"x": 15.0, "y": 18.0}, {"x": 30.0, "y": 40.0}
    one = {"floor": floor, "merged": middle, "ceiling": top}
    figure = published_plots.room({"theirs": one, "ours": {**one, "merged": {"x": 12.0, "y": 12.0}}})
    drawn = [[list(line.get_xdata()) for line in ax.lines] for ax in figure.axes]
    assert drawn == [[[10, 20], [15, 18], [30, 40]], [[10, 20], [12, 12], [30, 40]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["floor", "merged", "ceiling"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["x", "y"]


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "clip-vit-base-patch32"])
def test_a_record_counts_under_the_hub_id_and_under_the_name_of_the_family(name):
    ours = record(backbone=name)
    assert reproduced(line("Task Arithmetic"), [ours]) is ours
    assert reproduced(line("Task Arithmetic"), [record(backbone=f"/data/{name}")]) is None
