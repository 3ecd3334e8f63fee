"""The command line: what it says, its exit codes, and that a run can be ended at any time and goes on later."""

import signal
import subprocess
import sys

import psutil
import pytest
from press_helpers import (
    COMMAND,
    SOURCE,
    alive,
    family,
    light_environment,
    make_project,
    printed,
    wait_for,
    write_chapter,
)

from fusionlib import methods
from fusionlib.core import ParameterError
from fusionlib.press import grid, keys
from fusionlib.press.cli import main
from fusionlib.press.files import read_json
from fusionlib.press.project import status_file


@pytest.fixture
def project(tmp_path, monkeypatch):
    project = make_project(tmp_path / "checkout", one="scale: 1.0\n", two="scale: 2.0\n")
    write_chapter(project, "methods/task_arithmetic")
    write_chapter(project, "methods/ties_merging", parameters="scale = 1.0\ndensity = 0.2")
    write_chapter(project, "results/board", parameters="tasks = 'tiny8'")
    monkeypatch.chdir(project.book / "methods")
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    return project


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    return code, *capsys.readouterr()


def test_help_is_quick():
    """Beside torch, which ``import fusionlib`` costs, it loads next to nothing."""
    code = (
        "import sys\nimport fusionlib\nbefore = set(sys.modules)\nfrom fusionlib.press.cli import main\n"
        "assert main(['--help']) == 0\nprint('loaded', *{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, _, loaded = done.stdout.rpartition("loaded")
    assert all(f"  {name} " in shown for name in ("run", "book", "chapters", "methods", "prepare"))
    assert "click" in loaded.split()
    assert not {"rich", "yaml", "papermill", "nbclient", "IPython", "transformers", "pandas"} & set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --chapters tis_merging", "Error: no chapter matches 'tis_merging'. Did you mean 'ties_merging'?"),
        ("run --chapters methods/ties_mergin", "Did you mean 'methods/ties_merging'?"),
        ("run --params thee", "Error: there is no file of parameters 'thee'."),
        ("run --params one -p scal 2", "Error: -p: no chosen chapter has a parameter 'scal'. Did you mean 'scale'?"),
        ("run --params one one", "Error: configurations given twice, or two files with one name: one."),
        ("prepare --params one -p tuning lorra", "Error: -p: tuning='lorra' is not a kind of fine-tuning."),
    ],
)
def test_an_error_is_one_line(project, capsys, arguments, message):
    code, out, err = command(capsys, *arguments.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err
    with pytest.raises(ParameterError):
        main([*arguments.split(), "--traceback"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --jobs 0", "Invalid value for '--jobs': 0 is not in the range x>=1."),
        ("run -p scale", "Option '-p' requires 2 arguments."),
        ("run --params", "Option '--params' requires an argument."),
        ("run --parms one", "--parms"),
        ("run one", "Got unexpected extra argument (one)"),
        ("rnu", "No such command 'rnu'."),
    ],
)
def test_wrong_usage(project, capsys, arguments, message):
    code, out, err = command(capsys, *arguments.split())
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
    assert not (project.root / "_build").exists()


def test_outside_of_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, "run")
    assert code == 2 and err.startswith("Error: ") and "is not inside a checkout of the book" in err


def test_dry_run_takes_several_values_and_runs_nothing(project, capsys):
    arguments = "run --params one two --chapters ties_merging methods/task* -p scale -0.5 --dry-run"
    code, out, _ = command(capsys, *arguments.split())
    names = ("one+scale=-0.5", "two+scale=-0.5")
    pairs = [f"{chapter} ({name})" for chapter in ("task_arithmetic", "ties_merging") for name in names]
    assert code == 0
    assert out.splitlines()[:-1] == [f"would run   methods/{pair}: it has not been run" for pair in pairs]
    assert out.splitlines()[-1].startswith("4 of 4 would run; kernels would be ")
    assert not (project.root / "_build").exists()


def test_lists(project, capsys):
    code, out, _ = command(capsys, "chapters")
    assert code == 0 and "methods/ties_merging  (configurations: all)\n    scale = 1.0\n    density = 0.2\n" in out
    assert "results/board  (configurations: first; after all others)\n" in out and "tasks = " not in out
    code, out, _ = command(capsys, "methods")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(methods.names())


def test_prepare_takes_the_files_of_the_grid(project, capsys, monkeypatch):
    (project.params / "two.yaml").write_text("tasks: [flags]\ndensity: 0.1\n")
    asked = []
    monkeypatch.setattr(grid, "prepare", asked.extend)
    assert command(capsys, "prepare", "--params", "two", "-p", "seeds", "[1]")[0] == 0
    assert asked == [{"tasks": ["flags"], "density": 0.1, "seeds": [1]}]


def test_the_book_is_not_built_after_a_failure(project, capsys, monkeypatch):
    monkeypatch.setattr(grid, "run", lambda *_: grid.FAILED)
    code, _, err = command(capsys, "book")
    assert code == 1 and "The book was not built" in err


def test_an_interrupt_outside_of_a_run(project, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "prepare", interrupt)
    code, out, err = command(capsys, "prepare", "--params", "one")
    assert (code, out, err.strip()) == (130, "", "interrupted")


def test_without_the_book_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "fusionlib.press.commands")
    code, _, err = command(capsys, "--help")
    assert code == 2 and 'pip install "fusionlib[book]"  (missing: click)' in err


@pytest.fixture
def begin(tmp_path):
    """Starts ``fusionlib run`` on chapters a, which ends, b, which waits while ``hold`` exists, and c, which fails."""
    project = make_project(tmp_path / "checkout")
    write_chapter(project, "methods/a", "print(scale)")
    child = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\nopen('reached', 'w').close()"
    wait = "while os.path.exists('hold'):\n    time.sleep(0.02)\nchild.kill()\nprint('end', child.wait())"
    write_chapter(project, "methods/b", child, wait)
    write_chapter(project, "methods/c", "1 / 0")
    (project.root / "hold").touch()
    (tmp_path / "tmp").mkdir()
    environment = {**light_environment(tmp_path / "light"), "TMPDIR": str(tmp_path / "tmp"), "COLUMNS": "200"}
    started: list[psutil.Process] = []

    def start(*arguments: str, **more: str) -> psutil.Popen:
        process = psutil.Popen(
            [*COMMAND, "run", *arguments],
            cwd=project.root,
            env={**environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield project, start
    for process in alive(started):
        with process:
            process.kill()


@pytest.mark.parametrize("signum", ["SIGINT", "SIGKILL"])
def test_an_ended_run_leaves_no_process_and_goes_on(begin, tmp_path, capsys, monkeypatch, signum):
    project, start = begin
    first, second = (project.executed_copy("one", f"methods/{name}") for name in "ab")
    run = start("--jobs", "1")
    wait_for((project.root / "reached").exists)
    processes = family(run)
    assert len(processes) == 5, "the runner, the process it forks from, the job, the kernel and its child"
    run.send_signal(getattr(signal, signum))
    out, err = run.communicate(timeout=8)
    if signum == "SIGKILL":
        assert run.returncode == -signal.SIGKILL
        wait_for(lambda: not alive(processes), 5)
    else:
        assert (run.returncode, err) == (130, "")
        assert out.splitlines()[-1] == "interrupted: 1 of 3 done; run again to go on"
        assert not alive(processes)
    wait_for(lambda: not list((tmp_path / "tmp").glob("fusionlib-*")), 5)
    assert read_json(status_file(first))["status"] == "done" and printed(first) == "1.0\n"
    assert [path.name for path in second.parent.iterdir() if path.name != "a.ipynb"] == ["a.json"]

    monkeypatch.chdir(project.root)
    monkeypatch.setattr(keys, "library", lambda: SOURCE)
    for name, value in light_environment(tmp_path / "light").items():
        monkeypatch.setenv(name, value)
    code, out, _ = command(capsys, "run", "--dry-run")
    assert code == 0
    assert [line.partition("  ")[0] for line in out.splitlines()[:-1]] == ["up to date", "would run", "would run"]
    if signum == "SIGINT":
        written = first.stat().st_mtime_ns
        (project.root / "hold").unlink()
        code, out, err = command(capsys, "run", "--jobs", "2")
        assert (code, err) == (1, "")
        assert out.startswith("1 of 3 up to date\n") and "FAILED  methods/c (one)\n  in cell [2]:\n    | 1 / 0\n" in out
        assert printed(second) == "end -9\n" and first.stat().st_mtime_ns == written


def test_termination_is_an_interrupt_and_ends_kernels_that_were_not_forked(begin, tmp_path):
    project, start = begin
    run = start("--chapters", "b", FUSIONLIB_FORK="0")
    wait_for((project.root / "reached").exists)
    processes = family(run)
    assert len(processes) == 4, "the runner, the job, the kernel and its child"
    run.terminate()
    out, err = run.communicate(timeout=8)
    assert (run.returncode, err) == (130, "") and out.endswith("\ninterrupted: 0 of 1 done; run again to go on\n")
    assert not alive(processes) and not list((tmp_path / "tmp").glob("fusionlib-*"))
    assert [path.name for path in project.executed.iterdir()] == [".lock"]


def test_an_interrupt_while_the_libraries_are_loaded(begin):
    project, start = begin
    run = start()
    wait_for(lambda: any("fusionlib.press.zygote" in child.cmdline() for child in run.children()))
    processes = family(run)
    wait_for(lambda: processes[1].cpu_times().user > 0.1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=5)
    assert (run.returncode, err) == (130, "") and "interrupted: 0 of 3 done; run again to go on" in out
    assert not alive(processes) and [path.name for path in project.executed.iterdir()] == [".lock"]
