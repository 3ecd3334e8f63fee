"""The grid over a miniature book: what runs again and why, what fails alone, what runs last, what runs at once."""

import io
import json
import re

import pytest
from filelock import FileLock
from press_helpers import SOURCE, SharedPool, light_environment, make_project, printed, write_chapter
from rich.console import Console

from fusionlib.core import FusionError
from fusionlib.press import grid, keys, runner
from fusionlib.press.files import sweep, write_text
from fusionlib.press.project import failed_copy, status_file


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in light_environment(tmp_path_factory.mktemp("light")).items():
            patch.setenv(name, value)
        pool = SharedPool(tmp_path_factory.mktemp("root"))
    yield pool
    pool.close()


@pytest.fixture
def project(tmp_path, monkeypatch, shared):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(runner, "open_pool", shared.open)
    monkeypatch.setattr(keys, "library", lambda: SOURCE)
    return make_project(tmp_path / "checkout")


def press(project, width=200, **request) -> tuple[int, str]:
    """Exit code and output of a run."""
    output = io.StringIO()
    code = grid.run(project, grid.Request(**request), Console(file=output, width=width))
    return code, output.getvalue()


def plan(project, **request) -> dict[str, str]:
    """What a dry run says of each chapter."""
    code, text = press(project, dry_run=True, **request)
    assert code == 0
    lines = [re.fullmatch(r"(.+?)  +(\S+) \(.+?\)(.*)", line) for line in text.splitlines()[:-1]]
    return {name: what + why for what, name, why in (line.groups() for line in lines)}


def test_up_to_date_until_something_that_counts_changes(project, monkeypatch):
    (project.root / "model").mkdir()
    (project.root / "model" / "weights").write_text("1")
    path = write_chapter(project, "methods/a", "print(scale)", parameters="scale = 1.0\nbackbone = 'model'")
    assert plan(project) == {"methods/a": "would run: it has not been run"}
    assert press(project)[0] == 0
    copy = project.executed_copy("one", "methods/a")
    assert printed(copy) == "1.0\n"
    assert plan(project) == {"methods/a": "up to date"}
    written = copy.stat().st_mtime_ns
    assert press(project) == (0, "1 of 1 up to date\n") and copy.stat().st_mtime_ns == written

    original = path.read_text()
    notebook = json.loads(original)
    output = {"output_type": "stream", "name": "stdout", "text": "7"}
    notebook["cells"][1] |= {"execution_count": 7, "outputs": [output]}
    path.write_text(json.dumps(notebook))
    assert plan(project) == {"methods/a": "up to date"}
    notebook["cells"].append({"cell_type": "markdown", "id": "prose", "metadata": {}, "source": "The page shows this."})
    path.write_text(json.dumps(notebook))
    assert plan(project) == {"methods/a": "would run: the notebook has changed"}
    path.write_text(original.replace("print(scale)", "print(2 * scale)"))
    assert plan(project) == {"methods/a": "would run: the notebook has changed"}
    path.write_text(original)
    (project.params / "one.yaml").write_text("scale: 2.0")
    assert plan(project) == {"methods/a": "would run: the parameters have changed"}
    (project.params / "one.yaml").write_text("scale: 1.0  # a comment")
    (project.root / "model" / "weights").write_text("other")
    assert plan(project) == {"methods/a": "would run: the suite or the device has changed"}
    assert press(project)[0] == 0 and copy.stat().st_mtime_ns > written
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_PACKAGES", ("torch",))
        patch.setattr(keys, "library", lambda: "other source")
        changed = "would run: fusionlib has changed; versions of packages have changed"
        assert plan(project) == {"methods/a": changed}
    assert plan(project) == {"methods/a": "up to date"}
    assert plan(project, force=True) == {"methods/a": "would run: --force"}
    status_file(copy).write_text(status_file(copy).read_text()[:-20])
    assert plan(project) == {"methods/a": "would run: it has not been run"}


def test_library_counts_and_the_press_does_not(tmp_path, monkeypatch):
    package = tmp_path / "fusionlib"
    for folder in ("press", "methods", "methods/__pycache__"):
        (package / folder).mkdir(parents=True)
    (package / "methods" / "one.py").write_text("1")
    monkeypatch.setattr(keys, "__file__", str(package / "press" / "keys.py"))
    before = keys.library()
    (package / "press" / "keys.py").write_text("new")
    (package / "methods" / "__pycache__" / "one.pyc").write_text("new")
    assert keys.library() == before
    (package / "methods" / "one.py").write_text("2")
    assert keys.library() != before


def test_overrides_and_configurations_have_folders_of_their_own(project):
    (project.params / "two.yaml").write_text("scale: 2.0")
    write_chapter(project, "methods/a", "print(scale)")
    write_chapter(project, "summary", "print(scale)")
    write_chapter(project, "methods/only_two", "print(scale)", configurations=["two"])
    assert press(project, params=["one", "two"], jobs=2)[0] == 0
    copies = {path.relative_to(project.executed).as_posix() for path in project.executed.rglob("*.ipynb")}
    assert copies == {"one/methods/a.ipynb", "one/summary.ipynb", "two/methods/a.ipynb", "two/methods/only_two.ipynb"}
    assert printed(project.executed_copy("two", "methods/a")) == "2.0\n"
    assert press(project, params=["one"], chapters=("a",), overrides=[("scale", "0.5")])[0] == 0
    tried = project.executed_copy("one+scale=0.5", "methods/a")
    assert printed(tried) == "0.5\n" and printed(project.executed_copy("one", "methods/a")) == "1.0\n"
    assert json.loads(status_file(tried).read_text())["parameters"] == {"scale": 0.5}
    assert str(project.root) not in tried.read_text()
    with pytest.raises(FusionError, match="none of the chosen chapters runs for the chosen configurations"):
        press(project, params=["one"], chapters=("only_two",))


def test_a_chapter_can_run_once_per_backbone(project):
    for name, backbone in (("small", "tiny-clip"), ("again", "tiny-clip"), ("texts", "tiny-t5")):
        (project.params / f"{name}.yaml").write_text(f"backbone: {backbone}")
    write_chapter(
        project, "methods/deeper", "print(backbone)", parameters="backbone = 'tiny-nyu'", configurations="backbones"
    )
    assert press(project, params=["small", "again", "texts"])[0] == 0
    copies = {path.relative_to(project.executed).as_posix() for path in project.executed.rglob("*.ipynb")}
    assert copies == {"small/methods/deeper.ipynb", "texts/methods/deeper.ipynb"}


def test_a_failure_is_shown_and_leaves_the_others(project):
    long = "x = 'blob " + 300_000 * "z" + "'"
    fails = f"{long}\nraise ValueError('no such luck' + 400 * '!')"
    write_chapter(project, "methods/bad", "print('before')", fails, "print('after')")
    write_chapter(project, "methods/dead", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    write_chapter(project, "methods/good", "print(scale)")
    code, text = press(project, jobs=2)
    assert code == grid.FAILED
    assert "FAILED  methods/bad (one)\n  in cell [3]:\n    | x = 'blob zzz" in text
    assert (
        f"\n    ValueError: no such luck{400 * '!'}\n" in text
        and "----> 2 raise ValueError('no such luck' + 400" in text
    )
    assert "The notebook up to there: _build/executed/one/methods/bad.failed.ipynb\n" in text
    assert "DeadKernelError: the kernel died (ended by signal 9; 9 often means: out of memory)" in text
    assert text.endswith("2 of 3 failed; run again to retry them\n")
    bad = project.executed_copy("one", "methods/bad")
    assert printed(failed_copy(bad)) == "before\n" and not bad.exists()
    assert printed(project.executed_copy("one", "methods/good")) == "1.0\n"
    failed = "would run: the last run failed"
    assert plan(project) == {"methods/bad": failed, "methods/dead": failed, "methods/good": "up to date"}

    write_chapter(project, "methods/bad", "print('mended')")
    code, text = press(project, chapters=("bad", "good"))
    assert code == 0 and "1 of 2 up to date" in text
    assert printed(bad) == "mended\n" and not failed_copy(bad).exists()
    write_chapter(project, "methods/bad", "1 / 0")
    assert press(project, chapters=("bad",))[0] == grid.FAILED
    assert not bad.exists(), "the result of an older notebook is left in the place of a failed one"


def test_a_method_that_does_not_apply_is_skipped_with_its_reason(project):
    refuses = "from fusionlib.core import NotApplicable\nraise NotApplicable('depths have no classes.')"
    write_chapter(project, "methods/vote", refuses, "print('after')")
    write_chapter(project, "methods/good", "print(scale)")
    code, text = press(project)
    assert code == 0 and "skipped    methods/vote (one)" in text
    assert "skipped  methods/vote (one): does not apply. depths have no classes.\n" in text
    copy = project.executed_copy("one", "methods/vote")
    assert not copy.exists() and not failed_copy(copy).exists()
    assert plan(project) == {"methods/good": "up to date", "methods/vote": "up to date"}
    assert press(project) == (0, "2 of 2 up to date\n")
    write_chapter(project, "methods/vote", "print('it does now')")
    assert press(project)[0] == 0 and printed(copy) == "it does now\n"


def test_chapters_after_all_run_last_and_again_when_the_records_change(project):
    slow = "import os, time; time.sleep(0.3); os.makedirs('book/records', exist_ok=True)"
    write_chapter(project, "methods/z", slow, "open('book/records/a.jsonl', 'w').write(open('answer').read())")
    write_chapter(project, "results/board", "print(open('book/records/a.jsonl').read())")
    write_chapter(project, "cost", "print(open('book/records/a.jsonl').read())", after="all")
    (project.root / "answer").write_text("41")
    code, text = press(project, jobs=3)
    assert code == 0, text
    done = [line.split()[2] for line in text.splitlines() if " done " in line]
    assert done[0] == "methods/z" and sorted(done[1:]) == ["cost", "results/board"]
    assert press(project) == (0, "3 of 3 up to date\n")

    path = project.book / "methods" / "z.ipynb"
    path.write_text(path.read_text().replace("0.3", "0.1"))
    maybe = "may run: if the others change the records"
    assert plan(project) == {"cost": maybe, "methods/z": "would run: the notebook has changed", "results/board": maybe}
    code, text = press(project)
    assert "up to date results/board" in text and "up to date cost" in text, "the records are the same"

    (project.root / "answer").write_text("42")
    assert press(project, chapters=("z",), force=True)[0] == 0
    why = "would run: the records have changed"
    assert plan(project) == {"cost": why, "methods/z": "up to date", "results/board": why}
    assert press(project, jobs=2)[0] == 0
    assert printed(project.executed_copy("one", "results/board")) == "42\n"


def test_two_jobs_run_at_once_and_one_job_runs_alone(project):
    meet = (
        "import os, time\nopen({mine!r}, 'w').close()\nlimit = time.monotonic() + 10\n"
        "while not os.path.exists({other!r}):\n    assert time.monotonic() < limit, 'alone'\n    time.sleep(0.01)"
    )
    write_chapter(project, "methods/a", meet.format(mine="here_a", other="here_b"))
    write_chapter(project, "methods/b", meet.format(mine="here_b", other="here_a"))
    code, text = press(project, jobs=2)
    assert code == 0, text
    alone = "import os, time; os.mkdir('busy'); time.sleep(0.2); os.rmdir('busy')"
    for name in ("a", "b"):
        write_chapter(project, f"methods/{name}", alone)
    code, text = press(project, jobs=1)
    assert code == 0, text


def test_one_run_at_a_time_in_a_folder_that_can_be_written(project):
    write_chapter(project, "methods/a")
    project.executed.mkdir(parents=True)
    with FileLock(project.executed / ".lock"), pytest.raises(FusionError, match="another `fusionlib run` is at work"):
        press(project)
    (project.executed / ".lock").unlink()
    project.executed.rmdir()
    project.executed.write_text("a file where the folder should be")
    with pytest.raises(FusionError, match=r"cannot be written: .* Free some space or change its permissions"):
        press(project)


def test_a_dry_run_writes_nothing_and_keeps_to_one_line_per_chapter(project):
    write_chapter(project, "methods/a_chapter_with_a_rather_long_name")
    code, text = press(project, width=20, dry_run=True)
    assert (code, len(text.splitlines())) == (0, 2) and "1 of 1 would run; kernels would be" in text
    assert not (project.root / "_build").exists()


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "copy.ipynb"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    leftover = path.with_name(".copy.ipynb.123.tmp")
    leftover.write_text("half a noteb")
    sweep(tmp_path)
    assert list(path.parent.iterdir()) == [path]
