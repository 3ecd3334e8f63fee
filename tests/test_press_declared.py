"""What a parameters cell and a method's signature allow, asked before a kernel starts."""

from dataclasses import replace

import pytest
from press_helpers import make_project, write_chapter

from fusionlib.core import ParameterError
from fusionlib.press import chapters, grid, params

SIX = "backbone = 'tiny-clip'\ntasks = 'tiny8'\ntuning = 'full'\nseeds = [0]\ndevice = 'cpu'\neval_limit = None\n"


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path, one="scale: 1.0\n")
    write_chapter(project, "methods/b", parameters="density = 0.2")
    return project


DECLARED = """points: "int >= 2" = 4
rates: "list[float > 0]" = [0.1]
average: "str('logits', 'features')" = "logits"
most: "(int >= 1) | None" = None
top: "1 <= int <= points" = 2
gentle: "dict(steps=int >= 0, lr=float > 0)" = {"steps": 1, "lr": 0.1}
others: "dict[str, tuple[str, int]]" = {}
free = 1
"""


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("points", ["2", "7"], ["1", "2.0", "True", "None", "x", "[2]", "'2'"]),
        (
            "rates",
            ["[1]", "[1e-3, 2]"],
            ["[]", "[0.1, 0.1]", "[0]", "0.1", "['1']", "[True]", "[.nan]", "[[1]]", "{a: 1}"],
        ),
        ("average", ["features"], ["Logits", "1", "None", "[logits]", "{logits: 1}"]),
        ("most", ["1", "null"], ["0", "1.5", "no"]),
        ("top", ["1", "4"], ["0", "5"]),
        (
            "gentle",
            ["{steps: 0, lr: 1}"],
            ["{steps: 0}", "{steps: 0, lr: 1, x: 1}", "{steps: -1, lr: 1}", "1", "{1: 2}"],
        ),
        ("others", ["{}", "{a: [b, 1]}"], ["{a: [b]}", "{a: [1, b]}", "[]"]),
        ("free", ["3"], ["x", "1.5"]),
    ],
)
def test_a_parameters_cell_says_what_is_allowed(project, key, good, bad):
    (project.params / "both.yaml").write_text("density: 0.2")
    write_chapter(project, "methods/a", parameters=DECLARED)
    for text in good:
        grid.resolve(project, grid.Request(params=["both"], chapters=("a",), overrides=[(key, text)]))
    for text in bad:
        with pytest.raises(ParameterError, match=rf"-p:? {key}"):
            grid.resolve(project, grid.Request(params=["both"], chapters=("a",), overrides=[(key, text)]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('a: "int >= 2" = 1', "the parameters cell refuses its own default: a = 1 is not allowed"),
        ('a: "whole" = 1', "the declaration of a, 'whole', can't be read"),
        ('a: "int >=" = 1', "can't be read"),
        ('a: "1 <= 2 <= int" = 1', "can't be read"),
        ('a: "int <= b" = 1', "can't be read"),
        ("a: \"str('x', 1)\" = 1", "can't be read"),
        ('a: "int ** 2" = 1', "can't be read"),
        ('a: "int != 2" = 1', "can't be read"),
    ],
)
def test_what_a_parameters_cell_cannot_declare(project, source, message):
    write_chapter(project, "methods/a", parameters=source)
    with pytest.raises(ParameterError, match=message):
        chapters.read_all(project)


def test_methods_that_read_data_are_asked_too(project):
    write_chapter(project, "methods/regmean", parameters=SIX + "off_diagonal = 0.9\nridge = 0.0\nnum_examples = 8")
    found = [chapter for chapter in chapters.read_all(project) if chapter.name == "methods/regmean"]
    for key, value in (("off_diagonal", 1.1), ("ridge", -1.0), ("num_examples", 0)):
        with pytest.raises(ParameterError, match=rf"-p: {key} = {value}"):
            params.check([params.Configuration("one", "one.yaml", {key: value}, {})], found, found, project.root)


def test_a_hyperparameter_out_of_range_is_refused_before_anything_runs(project):
    write_chapter(project, "methods/ties_merging", parameters=SIX + "density = 0.2\ntrim = 'global'")
    found = [chapter for chapter in chapters.read_all(project) if chapter.name == "methods/ties_merging"]
    given = params.Configuration("one", "one.yaml", {"density": 0, "trim": "globl"}, {"density": 1, "trim": 2})
    with pytest.raises(ParameterError) as refusal:
        params.check([given], found, found, project.root)
    assert "line 1: density = 0 is out of range" in str(refusal.value)
    assert "line 2: trim = 'globl'" in str(refusal.value)
    params.check([replace(given, values={"density": 0.5, "trim": "tensor"})], found, found, project.root)
