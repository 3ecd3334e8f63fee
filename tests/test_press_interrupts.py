"""Ctrl-C while the command loads its libraries, however it was started: one line, 130, nothing else."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionlib.press import interrupts

MODULE = [sys.executable, "-m", "fusionlib.press.cli"]
SCRIPT = [sys.executable, "-c", "import sys; from fusionlib.press.cli import main; sys.exit(main())"]
# stands for torch: its import takes long, and an exception in it would be swallowed
SLOW = """
import pathlib, time
pathlib.Path({here!r}).touch()
while True:
    try:
        time.sleep(0.05)
    except BaseException:
        pathlib.Path({here!r}).with_name("swallowed").touch()
"""


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("signals", [1, 3])
def test_in_the_middle_of_an_import(tmp_path, monkeypatch, command, signals):
    here = tmp_path / "importing"
    (tmp_path / "torch.py").write_text(SLOW.format(here=str(here)))
    root = str(Path(interrupts.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    run = subprocess.Popen([*command, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 30
    while not here.exists():
        assert time.monotonic() < limit and run.poll() is None
        time.sleep(0.02)
    for _ in range(signals):
        run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (130, "", "interrupted\n") and not (tmp_path / "swallowed").exists()


def test_elsewhere_it_is_an_exception_that_can_be_dealt_with():
    def frame():
        return sys._getframe()

    with pytest.raises(KeyboardInterrupt):
        interrupts.interrupt(signal.SIGINT, frame())


def test_who_was_told_to_ignore_it_goes_on_ignoring_it():
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupts.ignore(signal.SIGINT)
        interrupts.listen(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.listen(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is interrupts.interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_decides_before_anything_heavy_is_imported():
    code = (
        "import sys, signal\nfrom fusionlib.press import cli, interrupts\n"
        "assert not {'torch', 'numpy', 'click'} & set(sys.modules), 'imported before Ctrl-C is dealt with'\n"
        "sys.argv = ['fusionlib', '--help']\nassert cli.main() == 0\n"
        "assert 'torch' not in sys.modules and signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
