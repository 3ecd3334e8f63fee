"""What many tests share: one run of every chapter on the smallest configuration, and the book built from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is imported; whatever the machine sets

import fusionlib  # noqa: F401  - before anything that imports torchvision

torch.set_num_threads(1)  # tensors are small here; threads would wait for each other most of the time

ROOT = Path(__file__).parents[1]
FUSIONLIB = [sys.executable, "-m", "fusionlib.press.cli"]
OTHERS = ["smoke-t5", "smoke-text", "smoke-nyu"]  # configurations of suites that are not of pictures
SHOWN = ["smoke", "again"]  # the configurations in the book
# These chapters keep their tasks whatever smoke.yaml says; here they get as many as they need.
TWO = ("reviews", "question")
TEXTS = {
    "tiny_gpt2": ("tiny-text7", ("acceptability", "reviews", "spam", "question", "entailment")),
    "gpt2": ("tiny-text7", TWO),
    "tiny_t5": ("tiny-text5", TWO),
    "flan_t5": ("tiny-text5", TWO),
}


def pytest_terminal_summary(terminalreporter):
    """Says what tests have counted."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture
def one_thread_home(tmp_path, monkeypatch):
    """An empty FUSIONLIB_HOME, and one computing thread as in the fine-tuning processes: results to the bit."""
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smoke_home(request):
    """FUSIONLIB_HOME of the chapters: fine-tunes stay there between test runs, records do not."""
    home = Path(request.config.cache.mkdir("fusionlib-home"))
    shutil.rmtree(home / "records", ignore_errors=True)
    return home


@pytest.fixture(scope="session")
def smoke_environment(smoke_home):
    """The environment in which chapters are executed: no network, and nothing of the user's own cache."""
    return {**os.environ, "FUSIONLIB_HOME": str(smoke_home), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory, smoke_environment):
    """A copy of the book's sources in which ``fusionlib run`` has executed every chapter for ``smoke``.

    And for ``OTHERS`` those that run for every configuration; one run leaves no core idle until its end.
    """
    root = tmp_path_factory.mktemp("project")
    for name in ("book", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root / name)
    for chapter, (tasks, some) in TEXTS.items():
        path = root / "book" / "suites" / f"{chapter}.ipynb"
        text = path.read_text(encoding="utf-8")
        listed = ", ".join(f'\\"{task}\\"' for task in some)
        fewer = text.replace(f'tasks = \\"{tasks}\\"', f"tasks = [{listed}]")
        assert fewer != text, f"{chapter} does not name {tasks}"
        path.write_text(fewer, encoding="utf-8")
    command = [*FUSIONLIB, "run", "--params", "smoke", *OTHERS]
    done = subprocess.run(command, cwd=root, env=smoke_environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return root


@pytest.fixture(scope="session")
def site(smoke_project):
    """The book built from these chapters, with every complaint of the build being an error: the site's folder.

    The same chapters stand for another configuration, so that there are pages below the chapters, too.
    """
    from fusionlib.press.book import build

    executed = smoke_project / "_build" / "executed"
    shutil.copytree(executed / SHOWN[0], executed / SHOWN[1])
    assert build(smoke_project, configurations=SHOWN) == 0, (smoke_project / "_build" / "book.log").read_text()
    return smoke_project / "_build" / "html"
