"""Kernels: forked or started anew they give the same outputs, and where forking is not safe it is not done."""

import ast
import io
import json
import os
import queue
import sys
import threading

import pytest
import torch
from press_helpers import light_environment, make_project, write_chapter
from rich.console import Console

from fusionlib.press import grid, pool, process
from fusionlib.press.project import status_file


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name, value in light_environment(tmp_path / "light").items():
        monkeypatch.setenv(name, value)
    return make_project(tmp_path / "checkout")


def outputs(notebook) -> list:
    """Outputs of all cells, with the names by which parameters were injected."""
    cells = json.loads(notebook.read_text())["cells"]
    return [(cell["metadata"]["tags"], cell["execution_count"], cell["outputs"]) for cell in cells]


CELLS = (
    "import os, sys, numpy\n"
    "names = ('OMP_NUM_THREADS', 'MPLBACKEND', 'TOKENIZERS_PARALLELISM', 'PYTHONPATH', 'MINE')\n"
    "print({name: os.environ.get(name) for name in names})",
    "print([os.getcwd(), sys.path, sys.argv[1], __name__, os.getpgid(0) == os.getpid()])",
    "import local\nlocal.value",
    "print('told', file=sys.stderr)",
    "!echo from a shell",
    "from IPython.display import HTML, display\ndisplay(HTML('<b>shown</b>'))\nscale",
    "import torch\ntorch.get_num_threads()",
    "import random, torch\nwith open('draws', 'a') as file:\n"
    "    print(random.random(), numpy.random.rand(), torch.rand(1).item(), file=file)",
)
KILL_THE_FIRST = "import psutil\npsutil.Process().parent().parent().kill()\nimport time\ntime.sleep(30)"


def test_forked_and_ordinary_kernels_give_the_same(project, monkeypatch):
    """The second of three chapters kills the process that kernels are forked from: the third is started anew."""
    monkeypatch.setenv("MINE", "kept")
    draw = "import random, numpy, torch\nrandom.random(), numpy.random.rand(), torch.rand(1)"
    (project.root.parent / "light" / "pandas.py").write_text(draw)  # a library that draws numbers when it is imported
    (project.root / "local.py").write_text("value = 'found beside the book'\n")
    (project.params / "one.yaml").write_text("scale: 2.5")
    write_chapter(project, "methods/a", *CELLS)
    write_chapter(project, "methods/b", CELLS[0], CELLS[-1], KILL_THE_FIRST)
    write_chapter(project, "methods/c", *CELLS)
    output = io.StringIO()
    code = grid.run(project, grid.Request(jobs=1, verbose=True), Console(file=output, width=200))
    text = output.getvalue()
    assert code == 1 and "Kernels are forked." in text
    assert text.count("FAILED") == 1, text
    assert "FAILED  methods/b (one)\n  FusionError: the process that kernels are forked from has died" in text
    forked, anew = (project.executed_copy("one", f"methods/{name}") for name in "ac")
    assert json.loads(status_file(anew).read_text())["status"] == "done"
    assert outputs(forked) == outputs(anew)
    _, injected, environment, place, local, told, shell, shown, *_ = outputs(forked)
    assert injected[0] == ["injected-parameters"] and shown[2][1]["data"] == {"text/plain": ["2.5"]}
    assert local[2][0]["data"] == {"text/plain": ["'found beside the book'"]}
    assert (told[2][0]["name"], shell[2][0]["name"]) == ("stderr", "stdout")
    where, path, *rest = ast.literal_eval(place[2][0]["text"][0])
    assert (where, rest) == (str(project.root), ["-f", "__main__", True]) and "" in path
    seen = ast.literal_eval(environment[2][0]["text"][0])
    wanted = process.kernel_environment()
    assert seen == {name: wanted[name] for name in seen} and seen["MINE"] == "kept" and seen["OMP_NUM_THREADS"] == "1"
    draws = (project.root / "draws").read_text().split()
    assert len(draws) == len(set(draws)) == 9, "kernels share the state of a random number generator"


def test_the_environment_puts_this_package_first(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    package = process.kernel_environment()["PYTHONPATH"]
    assert os.path.isdir(os.path.join(package, "fusionlib", "press"))
    monkeypatch.setenv("PYTHONPATH", "mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert process.kernel_environment()["PYTHONPATH"] == f"{package}{os.pathsep}mine"
    assert process.kernel_environment()["OMP_NUM_THREADS"] == "1", "jobs share the cores"


@pytest.fixture
def opened(project):
    """Opens pools, and closes them in the end."""
    pools = []

    def open_pool() -> tuple[pool.Pool, str | None]:
        found, refusal = pool.open_pool(project.root, queue.SimpleQueue())
        pools.append(found)
        return found, refusal

    yield open_pool
    for found in pools:
        found.stop()


def test_no_fork_where_the_machine_does_not_allow_it(opened, monkeypatch):
    monkeypatch.setattr(pool, "ForkPool", None)
    with monkeypatch.context() as patch:
        patch.setenv("FUSIONLIB_FORK", "0")
        found, refusal = opened()
        assert isinstance(found, pool.OrdinaryPool) and refusal == "FUSIONLIB_FORK=0 is set"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert process.fork_refusal() == "system libraries are not safe to use after a fork on darwin"
    with monkeypatch.context() as patch:
        patch.delattr(os, "fork")
        assert process.fork_refusal() == "this platform has no fork"
    if sys.platform == "linux":
        assert process.fork_refusal() is None


def test_no_fork_from_a_process_that_does_not_start(opened, tmp_path):
    (tmp_path / "light" / "torch.py").write_text("raise OSError('torch is broken')\n")
    found, refusal = opened()
    assert isinstance(found, pool.OrdinaryPool)
    assert refusal.startswith("the process that would be forked ended while it started: ")
    assert refusal.endswith("OSError: torch is broken")


def test_no_fork_from_a_process_with_threads(opened, tmp_path):
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "light" / "pandas.py").write_text(thread)
    found, refusal = opened()
    assert isinstance(found, pool.OrdinaryPool)
    assert refusal.startswith("2 threads are alive in the process that would be forked (")


@pytest.mark.skipif(sys.platform != "linux", reason="asked on Linux only")
def test_no_fork_when_cuda_is_initialised(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert process.fork_refusal_here() == "CUDA is initialised in the process that would be forked"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert "threads are alive" in process.fork_refusal_here()
    stop.set()
    thread.join()
