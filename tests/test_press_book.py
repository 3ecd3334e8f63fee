"""Builds that are broken off, two at once, and folders that can't be written; a script stands for jupyter-book."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from filelock import FileLock
from press_helpers import alive, family, make_project, wait_for

from fusionlib.core import FusionError
from fusionlib.press import book
from fusionlib.press.files import read_json, write_text

# builds a page of the word in the source; `half` is there while it works, and what it finds at its start is told
BUILDER = """
import os, pathlib, sys, time
from fusionlib.press.process import die_with_parent
die_with_parent({parent})
stage = pathlib.Path(sys.argv[-1])
built = stage / "_build" / "html"
found = "half " if (built / "half").exists() else "whole " if built.exists() else "nothing "
pathlib.Path("seen").open("a").write(found)
(built / "_sources").mkdir(parents=True, exist_ok=True)
(built / "half").touch()
pathlib.Path("working").touch()
while os.path.exists("hold"):
    time.sleep(0.02)
word = (stage / "book" / "intro.md").read_text()
(built / "index.html").write_text(word)
(built / "half").unlink()
pathlib.Path("working").unlink()
if word == "bad":
    print("intro.md:1: WARNING: bad word\\nbuild finished with problems, 1 warning.")
    sys.exit(1)
if word == "worse":
    print("Extension error: no more memory")
    sys.exit(2)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = make_project(tmp_path / "checkout")
    write_text(project.root / "_toc.yml", yaml.safe_dump({"parts": [{"chapters": [{"file": "book/intro"}]}]}))
    (project.book / "intro.md").write_text("good")
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(book, "_JUPYTER_BOOK", BUILDER)
    return project


def build(project, **how):
    return book.build(project.root, configurations=["one"], **how)


def seen(project):
    return (project.root / "seen").read_text().split()


def page(project):
    return (project.root / "_build" / "html" / "index.html").read_text().splitlines()[-1]


def test_what_changed_is_built_upon_what_is_there(project, capsys):
    assert build(project) == 0 and page(project) == "good" and seen(project) == ["nothing"]
    assert build(project) == 0 and seen(project) == ["nothing"] and "is up to date" in capsys.readouterr().out
    (project.book / "intro.md").write_text("better")
    assert build(project) == 0 and page(project) == "better" and seen(project) == ["nothing", "whole"]
    assert build(project, force=True) == 0 and seen(project) == ["nothing", "whole", "nothing"]


def test_complaints_keep_what_was_built_and_a_crash_does_not(project, capsys):
    build(project)
    (project.book / "intro.md").write_text("bad")
    assert build(project) == 1 and page(project) == "good" and seen(project)[-1] == "whole"
    assert "1 complaints, all in" in capsys.readouterr().err
    (project.book / "intro.md").write_text("worse")
    assert build(project) == 1 and page(project) == "good" and seen(project)[-1] == "whole"
    (project.book / "intro.md").write_text("good again")
    assert build(project) == 0 and page(project) == "good again" and seen(project)[-1] == "nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_was_killed_goes_on_by_itself(project, signum):
    build(project)
    (project.book / "intro.md").write_text("better")
    (project.root / "hold").touch()
    code = f"import sys; from fusionlib.press import book; book._JUPYTER_BOOK = {BUILDER!r}; from pathlib import Path; "
    code += f"sys.exit(book.build(Path({str(project.root)!r}), configurations=['one']))"
    run = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for((project.root / "working").exists)
    processes = family(run)
    run.send_signal(signum)
    run.communicate(timeout=60)
    wait_for(lambda: not alive(processes), 5)
    assert len(processes) == 2 and page(project) == "good"
    for left in ("hold", "working"):
        (project.root / left).unlink()
    assert build(project) == 0 and page(project) == "better" and seen(project) == ["nothing", "whole", "nothing"]


def test_two_builds_do_not_write_one_folder(project):
    (project.root / "_build").mkdir()
    told = r"another `fusionlib book` is building in .*: wait for it, or end it first"
    with FileLock(project.root / "_build" / "book.lock"), pytest.raises(FusionError, match=told):
        build(project)
    assert build(project) == 0


def test_a_folder_that_cannot_be_written(project):
    (project.root / "_build").write_text("a file")
    with pytest.raises(FusionError, match=r"cannot be written to .*_build: .*exists.* Free some space or change"):
        build(project)
    (project.root / "_build").unlink()
    (project.root / "_build").mkdir()
    (project.root / "_build" / "stage").write_text("a file")
    with pytest.raises(FusionError, match="cannot be written to"):
        build(project)
    assert read_json(project.root / "_build" / "book.json") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_what_jobs_are_forked_from_ends_with_the_runner_during_its_imports(tmp_path):
    code = (
        "import pathlib, queue\nfrom fusionlib.press import pool\n"
        f"pool.ForkPool(pathlib.Path({str(tmp_path)!r}), queue.SimpleQueue()).wait_until_ready()"
    )
    runner = psutil.Popen([sys.executable, "-c", code])
    wait_for(lambda: runner.children())
    processes = family(runner)
    wait_for(lambda: processes[1].cpu_times().user > 0.1)
    time.sleep(0.2)
    runner.kill()
    runner.wait()
    wait_for(lambda: not alive(processes), 1)
    assert len(processes) == 2
