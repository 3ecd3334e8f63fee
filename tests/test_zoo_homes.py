"""FUSIONLIB_HOME: one folder for the whole run, and one sentence where it can't be used; names never leave a folder."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_helpers import save_base, save_pictures, save_texts

import fusionlib as fl
from fusionlib.core import CheckpointError, FusionError, ParameterError
from fusionlib.zoo import files, inputs
from fusionlib.zoo.files import check_writable, file_name, home, write_atomically, writing

SUITE = "fl.load_suite(tasks=['optdigits'], tuning='none', device='cpu')"


def started(code, cwd, home, **options):
    """(exit status, last line of what it said) of a process with this home."""
    environment = {**os.environ, "FUSIONLIB_HOME": str(home), "FUSIONLIB_STEP_SHARE": "0.01"}
    command = [sys.executable, "-c", f"import os, fusionlib as fl\n{code}"]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, **options)
    return done.returncode, ((done.stdout + done.stderr).strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("a-file", r"FUSIONLIB_HOME='.*a-file' is no folder"),
        ("a-file/below", r"FUSIONLIB_HOME='.*below' can't be used: not a directory"),
        ("/dev/null", "FUSIONLIB_HOME='/dev/null' is no folder"),
        ("~nobody-of-this-name/x", "FUSIONLIB_HOME='~nobody-of-this-name/x' can't be used"),
        ("/tmp/" + "x" * 300, "can't be used: file name too long"),
        ("loop", "can't be used: too many levels of symbolic links"),
    ],
)
def test_homes_that_are_none(tmp_path, monkeypatch, named, words):
    (tmp_path / "a-file").write_text("x", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSIONLIB_HOME", named)
    with pytest.raises(CheckpointError, match=words) as caught:
        home()
    assert (
        str(caught.value).endswith("Set FUSIONLIB_HOME to a folder that can be written.")
        and len(str(caught.value)) < 400
    )
    with pytest.raises(CheckpointError):
        next(fl.load_suite(tasks=["flags"], tuning="none", device="cpu").batches("flags", "test"))


def test_a_home_is_made_when_something_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "new" / "home"))
    assert home() == tmp_path / "new" / "home" and not home().exists()
    check_writable()
    assert home().is_dir() and not list(home().iterdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FUSIONLIB_HOME", "~/mine")
    assert home() == tmp_path / "mine"


def test_a_relative_home_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSIONLIB_HOME", "mine")
    assert home() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert home() == tmp_path / "mine" and os.environ["FUSIONLIB_HOME"] == str(tmp_path / "mine")


def test_a_relative_home_is_that_of_the_beginning_in_every_process(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    child = "[sys.executable, '-c', 'from fusionlib.zoo import home; print(home())']"
    code = f"import subprocess, sys\nos.chdir('elsewhere')\nsubprocess.run({child})"
    status, said = started(code, tmp_path, "mine")
    assert (status, said) == (0, str(tmp_path / "mine"))


def no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    suite = fl.load_suite(tasks=["flags"], tuning="none", device="cpu")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", no_room)
    monkeypatch.setattr("fusionlib.bench.references.measure_all", lambda *_: pytest.fail("measured"))
    with pytest.raises(
        CheckpointError, match=r"records can't be written: no space is left.*in FUSIONLIB_HOME.*Make room"
    ):
        fl.references(suite)


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only")]
)
def test_what_the_system_says_is_one_sentence(tmp_path, monkeypatch, error):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match="right to write there, or name another folder"), writing(tmp_path / "x"):
        raise error
    with pytest.raises(CheckpointError, match="or set FUSIONLIB_HOME to another"), writing(tmp_path / "home" / "x"):
        raise RuntimeError("a library's own") from error
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept"
    write_atomically(path, lambda temporary: temporary.write_text("old", encoding="utf-8"))

    def half(temporary):
        temporary.write_text("ne", encoding="utf-8")
        no_room()

    with pytest.raises(CheckpointError, match="kept can't be written: no space is left"):
        write_atomically(path, half)
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_a_fine_tune_that_finds_no_room_goes_on_from_its_snapshot(tmp_path):
    """A limit on the size of files stands for a full disk; pictures fit in it, weights do not."""

    def little(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    code = "from fusionlib.zoo import train\nprint(train('tiny-clip', ['optdigits'], 'optdigits', progress=False))"
    status, said = started(code, tmp_path, tmp_path / "home", preexec_fn=little(3_300_000))
    assert status == 1 and said.startswith("fusionlib.core.CheckpointError: fine-tuning 'optdigits' failed"), said
    assert "can't be written" in said and "in FUSIONLIB_HOME" in said
    status, said = started(code, tmp_path, tmp_path / "home")
    assert status == 0 and Path(said).is_dir()


def test_names_of_tasks_that_are_none(tmp_path):
    data = save_texts(tmp_path / "data")
    for name, words in {
        "": "'' is no name of a task",
        "  ": "is no name",
        "a\0b": "is no name",
        "a\nb": "one line",
        "x" * 300: "1 to 120 characters",
        "\ud800": "can't be printed",
        3: "3 is no name of a task: names are texts; in YAML write it in quotes",
        None: "None is no name",
    }.items():
        with pytest.raises(ParameterError, match=words):
            fl.load_suite("tiny-gpt2", {name: data}, tuning="none", device="cpu")


def test_names_of_tasks_never_become_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "a" / "b" / "home"))
    names = ["../../../evil", "/evil", "..", "a/b", "a\\b", "C:\\x", "CON", "films", "Fotos von Bäumen", "x" * 120, "."]
    places = dict.fromkeys(names, save_pictures(tmp_path / "data"))
    heads = dict.fromkeys(names, torch.ones(2, 384))
    suite = fl.load_suite(tasks=places, heads=heads, tuning="none", device="cpu")
    record = fl.references(suite, limit=2)[0]
    assert list(record.counts) == names
    made = {path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.relative_to(tmp_path).parts}
    assert made and all(path.is_relative_to(home()) for path in made)
    for task in suite.tasks:
        inputs._kept.clear()  # which tasks of the same contents share
        next(inputs.pixels(task, "test", suite.backbone.preprocess))
    assert len(list((home() / "cache" / "inputs").iterdir())) == len(names)
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {home() / "cache" / "inputs"}


def test_a_task_of_any_name_is_trained_inside_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "a" / "b" / "home"))
    monkeypatch.setenv("FUSIONLIB_STEP_SHARE", "0.01")
    save_base(tmp_path / "base", "bert")
    tasks = {"../../../evil": save_texts(tmp_path / "data")}
    folder = fl.zoo.train(str(tmp_path / "base"), tasks, "../../../evil", progress=False)
    assert folder.is_relative_to(home() / "checkpoints") and folder.is_dir()


@given(st.text(max_size=150))
@settings(max_examples=300, deadline=None)
def test_file_names_stay_in_their_folder(text):
    name = file_name(text)
    assert Path(name).name == name and name not in ("", ".", "..") and len(name) <= 80 and name.isascii()
    assert not name.startswith((".", "-")) and not set(name) & set('<>:"|?*\\/')
    assert name.split(".")[0].upper() not in ("CON", "NUL", "COM1")


def test_different_names_have_different_files():
    texts = ["a", "a/", "/a", "../a", "a b", "a-b", "A", "", ".", "..", "x" * 100, "x" * 101, "con", "nul.txt"]
    assert len({file_name(text) for text in texts}) == len(texts)
    assert [file_name(text) for text in ("films", "SUN397", "stanford_cars", "v1.5")] == [
        "films",
        "SUN397",
        "stanford_cars",
        "v1.5",
    ]


def test_a_split_that_is_missing_is_said_before_anything_is_fused(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    places = {"flags": {}, "own": save_pictures(tmp_path / "data")}
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "further")
    heads = {"own": torch.ones(2, 384)}
    suite = fl.load_suite(tasks=places, heads=heads, tuning="none", device="cpu")
    monkeypatch.setattr("fusionlib.bench.evaluate.measure_task", lambda *_, **__: pytest.fail("measured"))
    for call in (fl.references, lambda s, split: fl.evaluate(s.model(), s, split)):
        with pytest.raises(FusionError, match=r"task 'own' has no split 'val'.*Allowed: test"):
            call(suite, split="val")
