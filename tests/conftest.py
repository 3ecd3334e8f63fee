"""What many tests share: one run of every chapter on the smallest configuration, and the book built from it."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from second_runs import SecondRuns

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is imported; whatever the machine sets

import fusionlib  # noqa: F401  - before anything that imports torchvision
from fusionlib.zoo import preparing

torch.set_num_threads(1)  # tensors are small here; threads would wait for each other most of the time
# a machine that is busy with other things is no fault of what is tested
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")

ROOT = Path(__file__).parents[1]
FUSIONLIB = [sys.executable, "-m", "fusionlib.press.cli"]
OTHERS = ["smoke-t5", "smoke-text", "smoke-nyu"]  # configurations of suites that are not of pictures
CHAPTERS = sorted(path.relative_to(ROOT / "book").with_suffix("").as_posix() for path in ROOT.glob("book/**/*.ipynb"))
MEASURING = [name for name in CHAPTERS if name.startswith(("methods/", "suites/"))]
SHOWN = ["smoke", "again"]  # the configurations in the book
# Of chapters of methods, beside what the files of parameters say.
SMALL = {
    "num_examples": 8,
    "quick_examples": 8,
    "example_counts": [4, 8],
    "steps": 4,
    "sweep_points": 2,
    "path_points": 3,
    "num_deals": 2,
    "rounds": 2,
    "train_steps": 4,
}
# These chapters keep their tasks and sizes whatever smoke.yaml says; here they get as much as they need.
GENTLE = {"steps": 3, "batch_size": 4, "lr": 0.01}
LESS = {
    "lora": {"adaptation": GENTLE},
    "tiny_gpt2": {
        "tasks": ["acceptability", "reviews", "spam", "question", "entailment"],
        "looked_at": {"fisher_merging": 4, "regmean": 16},
        "choice_limit": 16,
        "most": 32,
        "gentle": GENTLE,
    },
    "gpt2": {"tasks": ["reviews", "question"]},
    "tiny_t5": {
        "tasks": ["reviews", "question"],
        "looked_at": {"fisher_merging": 4, "regmean": 16},
        "gentle": GENTLE,
    },
    "flan_t5": {"tasks": ["reviews", "question"]},
    "tiny_nyu": {"scales": [0.3]},
}


def set_parameters(notebook, values):
    """Writes other values into the parameters cell of a notebook file, each where the chapter has its own."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    lines = "".join(cell["source"]).splitlines(keepends=True)
    found = {}
    for statement in ast.parse("".join(lines)).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
        found[target.id] = statement.value
    for name, value in sorted(values.items(), key=lambda item: -found[item[0]].lineno):
        old = found[name]
        before, after = lines[old.lineno - 1][: old.col_offset], lines[old.end_lineno - 1][old.end_col_offset :]
        lines[old.lineno - 1 : old.end_lineno] = [f"{before}{value!r}{after}"]
    cell["source"] = lines
    notebook.write_text(json.dumps(content), encoding="utf-8")


def pytest_collection_modifyitems(items):
    """First what has every chapter executed, on all cores; last what waits for runs beside the tests.

    Before these the browser, which takes all cores, when most such runs are over.
    """

    def place(item):
        late = "second_runs" in item.fixturenames, "browser" in item.fixturenames
        return *late, "smoke_project" not in item.fixturenames

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter):
    """Says what tests have counted."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture
def one_thread_home(tmp_path, monkeypatch):
    """An empty FUSIONLIB_HOME, and one computing thread as in the fine-tuning processes: results to the bit.

    One such process makes the few fine-tunes of a test, one after the other: to start it takes longer than they do.
    """
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    monkeypatch.setattr(preparing, "cores", lambda: 1)
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
    """The environment in which chapters are executed: no network, nothing of the user's own cache, short training."""
    given = {"FUSIONLIB_HOME": str(smoke_home), "HF_HUB_OFFLINE": "1", "FUSIONLIB_STEP_SHARE": "0.1"}
    return {**os.environ, **given}


@pytest.fixture(scope="session")
def smoke_project(request, executed_project):
    """``executed_project``, whose second runs begin at once if a test asks for them."""
    if any("second_runs" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("second_runs")
    return executed_project


@pytest.fixture(scope="session")
def second_runs(executed_project, smoke_home, smoke_environment, tmp_path_factory):
    """The chapters that measure, run again with the same fine-tunes and no records: see ``SecondRuns``."""
    executed = executed_project / "_build" / "executed" / "smoke"
    runs = SecondRuns(executed, smoke_home, smoke_environment, tmp_path_factory.mktemp("again"))
    runs.begin(MEASURING[::-1])  # suites first: they take longest
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def executed_project(request, tmp_path_factory, smoke_environment):
    """A copy of the book's sources in which ``fusionlib run`` has executed every chapter for ``smoke``.

    And for ``OTHERS``, if a test looks at them, those that run for every configuration; in one run, which leaves no
    core idle until its end.
    """
    root = tmp_path_factory.mktemp("project")
    for name in ("book", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root / name)
    for configuration in ["smoke", *OTHERS]:
        path = root / "params" / f"{configuration}.yaml"
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump({**given, **SMALL}), encoding="utf-8")
    for chapter, values in LESS.items():
        set_parameters(root / "book" / "suites" / f"{chapter}.ipynb", values)
    asked = any(item.path.stem == "test_chapters_on_suites" for item in request.session.items)
    command = [*FUSIONLIB, "run", "--params", "smoke", *(OTHERS if asked else [])]
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
