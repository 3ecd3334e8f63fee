"""Scores from counts, against numbers worked out by hand."""

import pytest
from bench_helpers import make_record

import fusionlib as fl
from fusionlib.bench.scores import average_half_width, kept, normalized_accuracy, rows, wilson
from fusionlib.core import ParameterError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("correct", "total", "interval"),
    [
        # p = 1/2, z^2 = 3.841459: centre 1/2; spread 1.959964 * sqrt(0.025 + 0.0096036) / 1.3841459
        (5, 10, (0.236593, 0.763407)),
        # p = 0: the lower end is 0, the upper z^2 / (n + z^2) = 3.841459 / 13.841459
        (0, 10, (0.0, 0.277533)),
        (10, 10, (0.722467, 1.0)),
        # p = 0.81: centre (0.81 + 0.0192073) / 1.0384146; spread 1.959964 * sqrt(0.001539 + 0.000096036) / 1.0384146
        (81, 100, (0.722212, 0.874853)),
    ],
)
def test_wilson(correct, total, interval):
    assert wilson(correct, total) == pytest.approx(interval, abs=2e-6)


def test_wilson_holds_the_proportion_itself():
    for total in range(1, 200):
        for correct in (0, 1, total // 2, total):
            low, high = wilson(correct, total)
            assert 0 <= low <= correct / total <= high <= 1
        assert wilson(total, total)[1] == 1.0


def test_half_width_of_the_average():
    # (0.8 * 0.2 / 100 + 0.5 * 0.5 / 400) / 4 = (0.0016 + 0.000625) / 4 = 0.00055625; its root is 0.02358495
    record = make_record(counts={"a": (80, 100), "b": (200, 400)})
    assert average_half_width(record) == pytest.approx(1.959964 * 0.02358495, rel=1e-6)
    assert record.accuracy == {"a": 0.8, "b": 0.5} and record.average == 0.65


def test_normalized_accuracy():
    record = make_record(counts={"a": (60, 100), "b": (45, 50), "c": (0, 10)})
    finetuned = make_record("finetuned", {"a": (80, 100), "b": (50, 50), "c": (0, 10)})
    assert normalized_accuracy(record, finetuned) == {"a": pytest.approx(0.75), "b": 0.9, "c": 1.0}
    row, ceiling = rows([record, finetuned])
    assert row.normalized == pytest.approx((0.75 + 0.9 + 1.0) / 3)
    assert ceiling.normalized == 1.0
    assert rows([record])[0].normalized is None


def test_each_seed_is_normalized_by_its_own_fine_tune():
    ceilings = [make_record("finetuned", {"a": (correct, 10)}, seed=seed) for seed, correct in enumerate((8, 10))]
    merged = [make_record(counts={"a": (correct, 10)}, seed=seed) for seed, correct in enumerate((4, 10))]
    assert rows([*ceilings, *merged])[1].normalized == pytest.approx((0.5 + 1.0) / 2)
    assert rows([ceilings[0], *merged])[1].normalized is None


def test_worst_task():
    (row,) = rows([make_record(counts={"a": (3, 4), "b": (1, 4), "c": (2, 4)})])
    assert row.worst == ("b", 0.25)


def test_spread_over_seeds_is_their_standard_deviation():
    made = [make_record(counts={"a": (correct, 100), "b": (60, 100)}, seed=s) for s, correct in enumerate((70, 80, 90))]
    (row,) = rows(made)
    # averages 0.65, 0.70, 0.75: deviations of 0.05 on both sides, divided by n - 1 = 2
    assert row.spread == pytest.approx(0.05)
    assert row.average == pytest.approx(0.70)
    assert row.accuracy == {"a": pytest.approx(0.8), "b": 0.6}
    (alone,) = rows(made[:1])
    assert alone.spread == average_half_width(made[0])


def test_rows_are_separate_questions_in_order_of_appearance():
    made = [
        make_record("simple_average"),
        make_record(hyperparameters={"scale": 0.3}),
        make_record("simple_average", seed=1),
        make_record(hyperparameters={"scale": 0.4}),
        make_record(hyperparameters={"scale": 0.4}, selected_on="val"),
    ]
    assert [len(row.records) for row in rows(made)] == [2, 1, 1, 1]
    assert [row.first for row in rows(made)] == [made[0], made[1], made[3], made[4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "val"}, r"one value of split, but these have 'test' and 'val'.*r.split == 'test'\]"),
        ({"limit": 5}, "one value of limit, but these have None and 5"),
        ({"backbone": "other"}, "one value of backbone, but these have 'toy' and 'other'"),
        ({"tuning": "lora"}, "one value of tuning, but these have 'full' and 'lora'"),
        ({"counts": {"a": (1, 2)}}, "one value of tasks, but these have"),
    ],
)
def test_what_is_not_comparable_is_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        rows([make_record("simple_average"), make_record("finetuned", seed=1), make_record(**changes)])


def test_measured_again_on_another_device_is_not_another_seed():
    before, after = make_record(key="cpu", counts={"a": (7, 10)}), make_record(key="cuda", counts={"a": (8, 10)})
    (row,) = rows([before, after])
    assert row.records == (after,)


def test_other_checkpoints_under_the_same_seed_are_refused():
    other = make_record(key="other", provenance={"suite": "f1", "created": ""})
    with pytest.raises(ParameterError, match=r"task_arithmetic, seed 0.*different checkpoints"):
        rows([make_record(), other])


def test_accuracy_of_counts_gives_each_task_the_same_weight():
    assert fl.accuracy({"a": (1, 2), "b": (90, 100)}) == pytest.approx(0.7)


def test_what_is_kept_of_the_gain():
    # averages: pretrained 0.4, fine-tuned 0.8, so that 0.7 keeps 0.3 of 0.4 and 0.3 lost 0.1 of 0.4
    both = {"pretrained": (40, 100), "finetuned": (80, 100), "ties_merging": (70, 100), "we_moe": (30, 100)}
    records = [make_record(name, counts={"a": counts}) for name, counts in both.items()]
    assert kept(records) == pytest.approx({"ties_merging": 75.0, "we_moe": -25.0})
    with pytest.raises(ParameterError, match="references pretrained and finetuned are needed"):
        kept(records[1:])
    level = make_record("finetuned", counts={"a": (40, 100)})
    with pytest.raises(ParameterError, match=r"fine-tuning gained 0\.0 points"):
        kept([records[0], level])
