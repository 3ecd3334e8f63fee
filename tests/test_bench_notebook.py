"""The guard against misspelt parameters and the numbers for prose, in an IPython shell and outside of one."""

import pytest

import fusionlib as fl
from fusionlib.core import ParameterError

OWN = 'backbone = "tiny-clip"  # a name\nscale: float = 0.3\ndensity = 0.2\nlow, high = 0, 1\n'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.fixture
def shell():
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    made = InteractiveShell.instance(config=config)
    yield made
    made.restore_sys_module_state()
    InteractiveShell.clear_instance()


def after(shell, *cells):
    """Runs the cells as a notebook would, then the check."""
    for cell in (*cells, "import fusionlib as fl\nfl.check_parameters()"):
        result = shell.run_cell(cell, store_history=True)
        if result.error_in_exec is not None:
            raise result.error_in_exec


@pytest.mark.parametrize(
    "injected",
    [
        "# Parameters\nscale = 0.4\n",
        '# Parameters\nbackbone = "other"\ndensity = 0.1\nlow = 0.5\n',
        "# Parameters\n",
        "scael = 1  # a cell of the reader's own",
    ],
)
def test_what_the_chapter_has_passes(shell, injected):
    after(shell, "import math", OWN, injected)


def test_a_chapter_without_injected_parameters_passes(shell):
    after(shell, OWN)
    fl.check_parameters()


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("# Parameters\nscael = 0.4\n", r"this chapter has no parameter 'scael'\. Did you mean 'scale'\?"),
        ("# Parameters\nscale = 0.4\nbatch = 1\n", r"no parameter 'batch'\. Allowed: backbone, density, high, low"),
    ],
)
def test_what_the_chapter_does_not_have_is_refused(shell, capsys, injected, message):
    with pytest.raises(ParameterError, match=message):
        after(shell, "import math", OWN, injected)
    assert "ParameterError" in capsys.readouterr().out


SIX = "backbone = 'tiny-clip'\ntasks = 'tiny8'\ntuning = 'full'\nseeds = [0]\ndevice = 'cpu'\neval_limit = None\n"
DECLARED = SIX + 'scale: "0 <= float <= 1" = 0.3\npoints: "int >= 2" = 4\nfree = 1\n'


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("# Parameters\nscale = '1e-1'\n", r"scale = '1e-1' is not allowed; .* It is text: write 0\.1\."),
        ("# Parameters\npoints = 1\n", "points = 1 is not allowed; it must be an integer, 2 or greater"),
        ("# Parameters\ntasks = '[\"films\"]'\n", "no set of tasks is called"),
        ("# Parameters\nseeds = 0\n", "seeds=0 must be a list"),
        ("# Parameters\neval_limit = 100.0\n", "eval_limit=100.0 must be a whole number"),
        ("scale = True  # by hand", "scale = True is not allowed"),
        ("device = 'gpu'", "device='gpu' is not known"),
    ],
)
def test_values_are_held_to_the_parameters_cell(shell, capsys, injected, message):
    with pytest.raises(ParameterError, match=message):
        after(shell, "%time 1", "import math", DECLARED, injected)
    assert "ParameterError" in capsys.readouterr().out


@pytest.mark.parametrize(
    "injected", ["# Parameters\nscale = 1\npoints = 2\neval_limit = 5\n", "scale = 0.5", "free = 'x'"]
)
def test_values_that_the_parameters_cell_allows_pass(shell, injected):
    after(shell, DECLARED, injected)


def test_outside_of_a_notebook_nothing_is_checked():
    fl.check_parameters()


def test_glue_stores_a_number_for_prose_and_shows_nothing(monkeypatch):
    published = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: published.append((data, options)))
    fl.glue("best", 0.71849, "{:.1%}")
    fl.glue("name", "TIES")
    fl.glue("gain", -0.51, "{:+.1f}")
    first, second, third = published
    assert first == (
        {"application/papermill.record/text/plain": "'71.8%'"},
        {
            "raw": True,
            "metadata": {"scrapbook": {"name": "best", "mime_prefix": "application/papermill.record/"}},
        },
    )
    # no other kind of data, which a front end would show
    assert second[0] == {"application/papermill.record/text/plain": "'TIES'"}
    # a true minus sign; quotes keep the role from reading a number and dropping the sign of a gain
    assert third[0] == {"application/papermill.record/text/plain": "'\N{MINUS SIGN}0.5'"}


@pytest.mark.parametrize(
    ("value", "fmt", "shown"),
    [(-0.04, "{:+.1f}", "0.0"), (0.04, "{:+.1f}", "0.0"), (-0.3, "{:.0f}", "0"), (-0.0004, "{:.1%}", "0.0%")],
)
def test_what_is_rounded_to_nothing_has_no_sign(monkeypatch, value, fmt, shown):
    published = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: published.append(data))
    fl.glue("gain", value, fmt)
    assert list(published[0].values()) == [repr(shown)]
