"""What is seen while fine-tunes are made, in each of the places it can be seen in."""

import pytest

from fusionlib.zoo import progress
from fusionlib.zoo.job import Job
from fusionlib.zoo.recipe import Recipe


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(monkeypatch, mode, clock, **options):
    monkeypatch.setattr(progress, "_mode", lambda: mode)
    first, second = (Job("tiny-clip", (name,), "full", 0, Recipe(steps=100)) for name in ("flags", "emoji"))
    shown = progress.Progress([first, second], **options)
    shown.step(first, 50)  # resumed: these steps took no time of this run
    clock[0] += 20
    shown.step(first, 100)
    shown.done(first)
    shown.waiting(second)
    shown.step(second, 0)
    clock[0] += 20
    shown.step(second, 50)
    shown.failed(second)
    shown.close()


def test_plain_lines(monkeypatch, capsys, clock):
    run(monkeypatch, "plain", clock)
    assert capsys.readouterr() == (
        "",
        "Fine-tuning tiny-clip, seed 0: 2 to make (flags, emoji).\n"
        "0 of 2 fine-tunes done; flags 100/100, 0:40 left\n"
        "1 of 2 fine-tunes done; 0:40 left\n"
        "emoji: another process is making it, waiting.\n"
        "1 of 2 fine-tunes done; emoji 50/100, 0:20 left\n"
        "emoji: failed.\n",
    )


def test_the_title_names_an_adapter(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_mode", lambda: "plain")
    progress.Progress([Job("tiny-clip", ("flags",), "l-lora", 1, Recipe(steps=100))]).close()
    assert capsys.readouterr().err == "Fine-tuning tiny-clip with l-lora, seed 1: 1 to make (flags).\n"


def test_fine_tunes_of_several_suites_have_long_names(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_mode", lambda: "plain")
    one, two, three = (
        Job(backbone, (task,), kind, 1, Recipe(steps=100))
        for backbone, task, kind in (
            ("tiny-clip", "flags", "lora"),
            ("tiny-clip", "emoji", "lora"),
            ("tiny-gpt2", "spam", "full"),
        )
    )
    shown = progress.Progress([one, two, three])
    shown.step(three, 10)
    shown.done(one)
    shown.close()
    first, second = capsys.readouterr().err.splitlines()
    counts = "2 of tiny-clip with lora, seed 1; 1 of tiny-gpt2, seed 1"
    assert first == f"Fine-tuning several suites: 3 to make ({counts})."
    assert second.startswith("1 of 3 fine-tunes done; tiny-gpt2 spam-full-seed1 10/100, ")


def test_one_changing_line_in_a_notebook(monkeypatch, capsys, clock):
    run(monkeypatch, "notebook", clock)
    shown = capsys.readouterr().err
    assert "\r1 of 2 fine-tunes done; emoji 50/100, 0:20 left" in shown and shown.endswith("\n")
    assert shown.startswith("Fine-tuning")


def test_bars_in_a_terminal(monkeypatch, capsys, clock):
    run(monkeypatch, "terminal", clock)
    shown = capsys.readouterr().err
    assert "emoji: another process is making it, waiting." in shown and "Fine-tuning tiny-clip, seed 0" in shown


def test_silence(monkeypatch, capsys, clock):
    run(monkeypatch, "plain", clock, enabled=False)
    assert capsys.readouterr() == ("", "")


def test_pipes_get_plain_lines(capfd):
    assert progress._mode() == "plain"
