"""Tables: their numbers, what is marked as best, and that names are only ever text."""

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from bench_helpers import make_record, parse_table, toy_suite

import fusionlib as fl
from fusionlib import methods
from fusionlib.bench import tables
from fusionlib.bench.table import Cell, Facts, Table, mark_best
from fusionlib.core import ParameterError

EVIL = "<script>alert(1)</script> & | co"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))


def some_records():
    return [
        make_record("simple_average", {"a": (70, 100), "b": (60, 100)}),
        make_record(counts={"a": (84, 100), "b": (52, 100)}, hyperparameters={"scale": 0.4}, selected_on="val"),
        make_record("ties_merging", {"a": (60, 100), "b": (40, 100)}, hyperparameters={"density": 0.2, "scale": 1.0}),
        make_record("finetuned", {"a": (100, 100), "b": (80, 100)}, stored_parameters=30),
        make_record("pretrained", {"a": (20, 100), "b": (20, 100)}),
    ]


def test_by_task():
    table = tables.by_task(some_records())
    texts, marks, _ = parse_table(table)
    assert [row["Method"] for row in texts] == [
        "Pretrained",
        "Fine-tuned (each its own)",
        "Simple Averaging",
        "Task Arithmetic, scale 0.4 (chosen on val)",
        "TIES-Merging, density 0.2, scale 1",
    ]
    # 1.959964 * sqrt(0.7 * 0.3 / 100 + 0.6 * 0.4 / 100) / 2 = 0.0657; (70/100 + 60/80) / 2 = 0.725
    assert texts[2] == {
        "Method": "Simple Averaging",
        "a": "70.0",
        "b": "60.0",
        "Average": "65.0 ± 6.6",
        "Normalised": "72.5",
        "Worst": "60.0",
    }
    assert [row["a"] for row in marks] == ["", "", "second", "best", ""], "references do not compete"
    assert [row["Average"] for row in marks] == ["", "", "second", "best", ""]
    assert [row["Worst"] for row in marks] == ["", "", "best", "second", ""]
    # (84/100 + 52/80) / 2 = 0.745
    assert texts[3]["Normalised"] == "74.5" and marks[3]["Normalised"] == "best"
    assert table.note == "Accuracy in %, test split, all examples; ± is half the 95 % interval of the average."
    assert list(table.groups) == [2]


def test_over_seeds_and_with_a_limit():
    made = [make_record(counts={"a": (n, 10)}, seed=seed, limit=10) for seed, n in enumerate((4, 6))]
    table = tables.by_task(made)
    texts, marks, _ = parse_table(table)
    # the standard deviation of 0.4 and 0.6 is the root of 0.02
    assert texts == [{"Method": "Task Arithmetic, scale 0.3", "a": "50.0", "Average": "50.0 ± 14.1", "Worst": "50.0"}]
    assert set(marks[0].values()) == {""}, "nothing is best where there is nothing to compare with"
    assert "the first 10 examples of each task; ± is standard deviation over 2 seeds" in table.note
    assert "Normalised" not in table.columns, "there is nothing to divide by"


def test_leaderboard():
    counts = {"a": (90, 100), "b": (70, 100)}
    ensemble = make_record("simple_ensemble", counts, stored_parameters=80, active_parameters=80, fusion_seconds=0)
    texts, marks, _ = parse_table(tables.leaderboard([*some_records(), ensemble]))
    methods_shown = ["Pretrained", "Fine-tuned (each its own)", "Simple Ensemble", "Task Arithmetic"]
    assert [row["Method"] for row in texts] == [*methods_shown, "Simple Averaging", "TIES-Merging"]
    assert [row["Average"].split()[0] for row in texts] == ["20.0", "90.0", "80.0", "68.0", "65.0", "50.0"]
    assert [row["Average"] for row in marks] == ["", "", "best", "second", "", ""]
    assert texts[2] == {
        "Method": "Simple Ensemble",
        "Hyper-parameters": "–",
        "Chosen": "defaults",
        "Average": "80.0 ± 5.4",  # 1.959964 * sqrt(0.09 / 100 + 0.21 / 100) / 2
        "Normalised": "88.8",  # (90/100 + 70/80) / 2 = 0.8875
        "Worst task": "70.0 (b)",
        "Uses": "weights alone",
        "Stored": "8 ×",
        "Active": "8 ×",
        "Fusion": "< 0.01 s",
        "Extra memory": "–",
    }
    assert texts[3]["Chosen"] == "tuned on val" and texts[3]["Fusion"] == "0.50 s"
    assert texts[1]["Uses"] == "the task, to pick a model" and texts[1]["Stored"] == "3 ×" and texts[1]["Fusion"] == "–"


def test_leaderboard_says_by_what_its_rows_can_be_chosen():
    guided = make_record("regmean", needs=("inputs",), peak_memory=12_345_678)
    table = tables.leaderboard([*some_records(), guided])
    assert dict(table.facets) == {
        "Kind": ["", "", *["merge"] * 4],
        "Uses": ["", "", "unlabelled inputs", "labels to choose", *["weights alone"] * 2],
        "Hyper-parameters": ["", "", "–", "tuned on val", "–", "defaults"],
    }
    assert parse_table(table)[0][2]["Extra memory"] == "12 MB"
    assert table._repr_html_().count("<tr data-facets=") + table._repr_html_().count('"rule" data-facets=') == 6


def test_defaults_that_validation_chose_are_one_row():
    made = [make_record(), make_record(selected_on="val"), make_record(hyperparameters={"scale": 0.5})]
    texts, _, _ = parse_table(tables.by_task(made))
    assert [row["Method"] for row in texts] == [
        "Task Arithmetic, scale 0.3 (chosen on val)",
        "Task Arithmetic, scale 0.5",
    ]


def test_hyper_parameters_stand_in_the_order_of_the_signature():
    given = {"scale": 0.5, "combine": "sum", "density": 0.1}
    for order in (sorted(given), sorted(given, reverse=True)):
        record = make_record("ties_merging", hyperparameters={name: given[name] for name in order})
        assert tables.label(record) == "TIES-Merging, density 0.1, scale 0.5, combine sum"


def test_how_hyper_parameters_were_chosen():
    made = [make_record(hyperparameters={"scale": scale}) for scale in (0.3, 0.9)]
    texts, _, _ = parse_table(tables.leaderboard([*made, make_record("mine", hyperparameters={"scale": 1})]))
    assert {row["Hyper-parameters"]: row["Chosen"] for row in texts} == {
        "scale 0.3": "defaults",
        "scale 0.9": "given",
        "scale 1": "given",
    }


def test_tables_of_a_run():
    suite = toy_suite()
    made = [*fl.references(suite), fl.run("simple_average", suite), fl.run("simple_ensemble", suite)]
    texts, _, _ = parse_table(tables.by_task(made))
    # threshold 2 is right on 3 of 4 and 4 of 5 examples: (0.75 + 0.8) / 2
    assert [row["Average"].split()[0] for row in texts] == ["57.5", "100.0", "77.5", "77.5"]


@pytest.mark.parametrize("show", [tables.by_task, tables.leaderboard])
def test_what_can_be_shown(show):
    with pytest.raises(ParameterError, match="no records to show; run the method chapters"):
        show([])
    for change in ({"split": "val"}, {"tuning": "lora"}, {"counts": {"c": (1, 2)}}, {"limit": 3}):
        with pytest.raises(ParameterError, match="one value of"):
            show([make_record("simple_average"), make_record(**change)])


def test_names_are_text():
    record = make_record(EVIL, {EVIL: (1, 2)}, hyperparameters={"<i>": "<b>"}, kind="merge")
    for table in (tables.by_task([record]), tables.leaderboard([record])):
        texts, _, tags = parse_table(table)
        assert not {"script", "i", "b"} & set(tags)
        assert texts[0]["Method"].startswith(EVIL)
        assert "<script" not in table._repr_markdown_() and "| co" not in table._repr_markdown_().replace("\\|", "")
    facts = Facts(f'" {EVIL}', [(EVIL, "<b>")])._repr_html_()
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append((tag, dict(attrs)))
    parser.feed(facts)
    assert [tag for tag, _ in seen] == ["dl", "div", "dt", "dd"]
    assert seen[0][1]["aria-label"] == f'Facts about " {EVIL}'


def test_plain():
    table = tables.plain(["what", "how many", "how much"], [["numbers", 12345, 0.12345], [EVIL, 1, 2.0]])
    texts, _, tags = parse_table(table)
    assert texts[0] == {"what": "numbers", "how many": "12,345", "how much": "0.123"}
    assert texts[1]["what"] == EVIL and "script" not in tags
    assert [cell.number for cell in table.rows[0]] == [False, True, True]


def test_cards_have_a_row_per_method():
    texts, _, _ = parse_table(tables.cards())
    assert [row["Method"] for row in texts] == [methods.get(name).card.title for name in methods.names()]
    by_title = {row["Method"]: row for row in texts}
    assert by_title["TIES-Merging"]["Hyper-parameters"] == "density, scale, trim, combine, zero_sign"
    assert by_title["Weighted Averaging"]["Information used"] == "labels to choose weights"
    assert by_title["Simple Averaging"] == {
        "Method": "Simple Averaging",
        "Kind": "merge",
        "Information used": "weights alone",
        "Hyper-parameters": "none",
        "Stored": "1 model",
        "Per prediction": "1 model",
    }


def test_fact_box():
    facts = dict(tables.fact_box("weighted_average").facts)
    assert facts["Hyper-parameters"] == "weights = required, normalize = True"
    assert facts["Order of models"] == "matters" and facts["Works on"] == "each number by itself"
    assert facts["Call"] == "fusionlib.methods.weighted_average.fuse"
    assert "fusionlib.<wbr>methods.<wbr>weighted_average.<wbr>fuse" in tables.fact_box("weighted_average")._repr_html_()
    mine = SimpleNamespace(card=replace(methods.get("ties_merging").card, name="mine"), fuse=lambda p, f, *, k=2: p)
    assert dict(tables.fact_box(mine).facts)["Hyper-parameters"] == "k = 2"
    ensemble = tables.fact_box(methods.get("simple_ensemble"))
    assert dict(ensemble.facts)["Works on"] == "outputs, not weights" and ensemble.title == "Simple Ensemble"
    assert str(ensemble).splitlines()[:2] == ["Simple Ensemble", "  Kind: ensemble"]
    assert ensemble.to_frame().loc["Stored", "Simple Ensemble"] == "T models"


def test_plain_text_and_markdown_can_be_read():
    table = tables.by_task(some_records()[:2])
    lines = str(table).splitlines()
    assert lines[0].split() == ["Method", "Average", "Worst", "a", "b"]
    assert lines[1].split() == ["Simple", "Averaging", "65.0", "±", "6.6", "60.0", "70.0", "60.0"]
    assert lines[0].index("Average") == lines[1].index("65.0 ±") == lines[2].index("68.0 ±")
    assert lines[-1].startswith("Accuracy in %")
    assert "| *70.0* | **60.0** |" in table._repr_markdown_()
    assert table.to_frame().loc["Simple Averaging", "a"] == "70.0"


def test_a_rule_between_groups():
    html = Table(["x"], [[Cell("one")], [Cell("two")]], groups=[1])._repr_html_()
    assert html.count("<tr") == 3 and '<tr class="rule"><th scope="row">two' in html


def test_mark_best():
    assert mark_best([[1.0, 3.0, None, 2.0], [5.0, 5.0, 4.0, None], [2.0, 2.0, None, None], [None] * 4]) == [
        ["", "best", "", "second"],
        ["best", "best", "second", ""],
        ["", "", "", ""],
        ["", "", "", ""],
    ]


def test_half_width_for_prose():
    assert tables.half_width(make_record(counts={"a": (5, 10)})) == pytest.approx(1.959964 * 0.025**0.5)


@pytest.mark.parametrize(("value", "shown"), [(-0.04, "0.0"), (-0.06, "-0.1"), (0.0, "0.0"), (-10.0, "-10.0")])
def test_what_rounds_to_zero_has_no_sign(value, shown):
    assert tables.plain(["name", "change"], [("a", value)], fmt="{:.1f}").rows[0][1].text == shown


def test_plain_values():
    texts, _, _ = parse_table(tables.plain(["name", "n", "share"], [("a <b>", 12345, 0.5)], fmt="{:.2f}"))
    assert texts == [{"name": "a <b>", "n": "12,345", "share": "0.50"}]


def test_short_labels_name_only_what_differs():
    made = [
        make_record(hyperparameters={"scale": 0.4}),
        make_record("ties_merging", hyperparameters={"density": 0.2, "scale": 1.0, "combine": "mean"}),
        make_record("ties_merging", hyperparameters={"density": 0.2, "scale": 0.5, "combine": "sum"}),
    ]
    wanted = ["Task Arithmetic", "TIES-Merging, scale 1, combine mean", "TIES-Merging, scale 0.5, combine sum"]
    assert tables.short_labels(made) == wanted


def test_facts_of_methods_that_enlarge_or_rearrange():
    rearranged = dict(tables.fact_box("model_recombination").facts)
    assert rearranged["Returns"] == "one model of the same shape" and rearranged["Stored"] == "1 model"
    enlarged = dict(tables.fact_box("depth_upscaling").facts)
    assert enlarged["Acts on"] == "one model" and "Order of models" not in enlarged
    assert enlarged["Returns"] == "one model of a new shape"
