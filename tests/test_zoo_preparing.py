"""Fine-tuning in worker processes: results, display, failure, interruption, and who outlives whom."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

import fusionlib as fl
from fusionlib import zoo
from fusionlib.core import CheckpointError, FusionError
from fusionlib.zoo import preparing, recipe
from fusionlib.zoo.backbone import tiny_clip
from fusionlib.zoo.finetune import finetune
from fusionlib.zoo.heads import make_head
from fusionlib.zoo.job import plan
from fusionlib.zoo.task import embedded_task


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    for kind in recipe.RECIPES:
        monkeypatch.setitem(recipe.RECIPES, kind, replace(recipe.RECIPES[kind], steps=3, batch_size=4))
    return tmp_path


def test_suite_is_made_once_and_equal_when_read_again(capfd):
    arguments = {"tasks": ["emoji", "flags"], "device": "cpu"}
    assert len(zoo.missing(tasks=arguments["tasks"], multitask=True)) == 3
    first = fl.load_suite(**arguments, multitask=True)
    shown = capfd.readouterr().err
    assert "3 to make (joint, emoji, flags)" in shown and "3 of 3 fine-tunes done" in shown
    second = fl.load_suite(**arguments)
    assert capfd.readouterr() == ("", "")
    assert zoo.missing(tasks=arguments["tasks"], multitask=True) == []
    assert first.fingerprint == second.fingerprint and list(second.finetuned) == ["emoji", "flags"]
    for name in first.pretrained:
        assert torch.equal(first.finetuned["flags"][name], second.finetuned["flags"][name])
        assert torch.equal(first.multitask[name], second.multitask[name])
    assert fl.load_suite(**arguments, multitask=False).multitask is None
    moved = first.models[1][0].state_dict()
    assert all(torch.equal(moved[name], tensor) for name, tensor in first.finetuned["emoji"].items())


def test_killed_run_goes_on_and_ends_bit_identical(home, monkeypatch):
    changed = replace(recipe.RECIPES["full"], steps=100)
    monkeypatch.setitem(recipe.RECIPES, "full", changed)
    (job,) = plan("tiny-clip", ("flags",), "full", 0, multitask=False)
    snapshot = job.partial / "snapshot.safetensors"
    script = (
        "from fusionlib.zoo import prepare, recipe\n"
        "recipe.RECIPES['full'] = recipe.Recipe(steps=100, batch_size=4)\n"
        "prepare(tasks=['flags'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    for _ in range(12000):
        if snapshot.exists():
            break
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with FileLock(job.lock, timeout=10):  # free only once the orphaned worker has ended
        assert snapshot.exists() and not job.folder.exists()
    zoo.prepare(tasks=["flags"], progress=False)
    resumed = fl.load_suite(tasks=["flags"], device="cpu").finetuned["flags"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = embedded_task("flags")
    head = make_head(task, tiny_clip(), None)
    whole = finetune(tiny_clip(), [task], [head], changed, job.training_seed, home / "other" / "snapshot").model
    torch.set_num_threads(threads)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.state_dict().items())


def test_failure_of_one_leaves_the_others(home, capfd, monkeypatch):
    monkeypatch.setattr(preparing, "cores", lambda: 1)  # one process, which must survive the failure
    bad, good = plan("tiny-clip", ("flags", "emoji"), "full", 0, multitask=False)
    bad.partial.mkdir(parents=True)
    (bad.partial / "snapshot.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"fine-tuning 'flags' failed: the snapshot .* Delete it"):
        zoo.prepare(tasks=["flags", "emoji"])
    assert good.folder.exists() and not bad.folder.exists()
    assert "flags: failed" in capfd.readouterr().err


def test_interrupt_says_that_nothing_is_lost(monkeypatch, capfd):
    workers = []

    class Recorded(preparing._Worker):
        def __init__(self, events):
            super().__init__(events)
            workers.append(self._process)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "_Worker", Recorded)
    monkeypatch.setattr(preparing, "_handle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        zoo.prepare(tasks=["flags"])
    assert "the next call goes on from there" in capfd.readouterr().err
    assert [process.poll() for process in workers] == [0]


def test_a_dying_worker_is_reported(monkeypatch):
    class Doomed(preparing._Worker):
        def give(self, job):
            super().give(job)
            os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(preparing, "_Worker", Doomed)
    with pytest.raises(FusionError, match="the process fine-tuning 'flags' ended unexpectedly"):
        zoo.prepare(tasks=["flags"], progress=False)
