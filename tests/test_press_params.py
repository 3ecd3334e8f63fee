"""Configurations: what is wrong in a file or on the command line is one sentence, said before anything runs."""

import io

import pytest
from press_helpers import make_project, write_chapter
from rich.console import Console

from fusionlib.core import ParameterError
from fusionlib.press import chapters, grid, params, plan, runner
from fusionlib.zoo import preparing
from fusionlib.zoo.names import SETS

SIX = "backbone = 'tiny-clip'\ntasks = 'tiny8'\ntuning = 'full'\nseeds = [0]\ndevice = 'cpu'\neval_limit = None\n"


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path, one="scale: 1.0\n")
    write_chapter(project, "methods/a", parameters=SIX + "scale = 1.0\nsteps = 5\nnames = ['x']\nlimit = None")
    write_chapter(project, "methods/b", parameters="density = 0.2")
    return project


@pytest.fixture
def refused(project, monkeypatch):
    """Runs the grid with one params file; the error. Fails if a process, an output or a fine-tune is begun."""

    def begun(*_, **__):
        raise AssertionError("something was begun before the parameters were checked")

    def run(text: str, **request) -> str:
        (project.params / "one.yaml").write_text(text)
        with pytest.raises(ParameterError) as raised:
            grid.run(project, grid.Request(params=["one"], **request), Console(file=io.StringIO()))
        assert not (project.root / "_build").exists()
        return str(raised.value)

    monkeypatch.setattr(runner, "open_pool", begun)
    monkeypatch.setattr(grid, "prepare", begun)
    return run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scal: 1.0", "one.yaml, line 1: no chapter has a parameter 'scal'. Did you mean 'scale'?"),
        ("# first\ntask: tiny8", "one.yaml, line 2: no chapter has a parameter 'task'. Did you mean 'tasks'?"),
        ("scale: fast", "one.yaml, line 1: scale='fast' must be a number, as in chapter methods/a."),
        ("scale: true", "scale=True must be a number"),
        ("scale: .nan", "scale=nan must be a number"),
        ("scale: " + "9" * 400, "must be a number"),
        ("steps: " + "9" * 5000, "one.yaml is not YAML"),
        ("names: " + "[" * 5000, "one.yaml: lists and mappings are nested too deeply"),
        ("backbone: ~nouser/x", "there is no home folder of that user"),
        ("backbone: " + "b" * 300, "can't be looked for: File name too long"),
        ('backbone: "a\\0b"', "can be no path"),
        ("tasks: {pets: ~nouser/x}", "there is no home folder of that user"),
        ("tasks: {a: x, a: y}", "'a' is set on line 1, twice"),
        ("seeds: [99999999999999999999]", "is too large"),
        ("steps: 1.5", "steps=1.5 must be an integer"),
        ("steps: null", "steps=None must be an integer"),
        ("names: [x, 1]", "names=['x', 1] must be a list in which every element is a string"),
        ("names: x", "names='x' must be a list"),
        ("backbone: tiny-clap", "Did you mean 'tiny-clip'?"),
        ("backbone: ./nowhere", "backbone='./nowhere' is written as a folder, and there is no folder of that name."),
        ("backbone: 3", "backbone=3 must be a string"),
        ("tasks: tiny9", "no set of tasks is called 'tiny9'. Did you mean 'tiny8'?"),
        ("tasks: [mnist, mnsit]", "no task is called 'mnsit'. Did you mean 'mnist'?"),
        ("tasks: [mnist, mnist]", "tasks listed more than once: mnist"),
        ("tasks: []", "the list of tasks is empty"),
        ("tasks: {}", "tasks={} must name at least one task"),
        ("tasks: {pets: ./nowhere}", "the data of 'pets' should be at './nowhere'"),
        ("tasks: {1: ./nowhere}", "line 1: the key '1' is not a name"),
        ("tasks: {pets: {data: ./nowhere}}", "the data of 'pets' should be at './nowhere'"),
        ("tasks: {mnist: {checkpoint: ./nowhere}}", "the checkpoint of 'mnist' should be at './nowhere'"),
        ("tasks: {pets: {dat: ./nowhere}}", "task 'pets' has 'dat', which is not known. Did you mean 'data'?"),
        ("tasks: {pets: {checkpoint: ./nowhere}}", "task 'pets' has no data"),
        ("tasks: {pets: [a]}", "the data of task 'pets' is ['a']"),
        ("checkpoints: ./x", "Write it with its task: `tasks: {name: {data: ..., checkpoint: ...}}`"),
        ("tasks: 8", "tasks=8 must be the name of a set or a list"),
        ("tuning: lorra", "tuning='lorra' is not a kind of fine-tuning. Did you mean 'lora'?"),
        ("seeds: 0", "seeds=0 must be a list of at least one integer"),
        ("seeds: [0, -1]", "seed=-1 must be an integer, 0 or greater"),
        ("seeds: [0, 0]", "holds a seed twice"),
        ("device: gpu", "device='gpu' is not known"),
        ("eval_limit: 0", "eval_limit=0 must be a whole number of examples, 1 or more, or null for all."),
        ("eval_limit: true", "eval_limit=True must be"),
        ("", "one.yaml must hold `name: value` lines"),
        ("- scale", "one.yaml must hold `name: value` lines"),
        ("steps: 1\nscale: {a: 1}", "one.yaml, line 2: 'scale' is nested"),
        ("names: [[x]]", "'names' is nested"),
        ("scale: [1", "one.yaml: line 1 is not YAML"),
        ("scale: 1.0\nscale: 2.0", "'scale' is set on line 1 and on line 2"),
        ("1: 2", "line 1: the key '1' is not a name; put it in quotes"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(refused, text, message):
    assert message in refused(text)


def test_all_problems_are_told_at_once_with_their_lines(refused):
    message = refused("scal: 1.0\n\nsteps: many\nseeds: []\n")
    assert message.startswith("3 parameters were refused, and nothing was run:\n")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "one.yaml, line 1",
        "one.yaml, line 3",
        "one.yaml, line 4",
    ]


def test_overrides_are_checked_like_files(refused):
    assert refused("scale: 1.0", overrides=[("scal", "2")]).startswith("-p: no chosen chapter has a parameter 'scal'")
    assert "-p: scale='fast' must be a number" in refused("scale: 1.0", overrides=[("scale", "fast")])
    assert "-p: scale=True must be a number" in refused("scale: 1.0", overrides=[("scale", "True")])
    assert "-p: seeds=3 must be a list" in refused("scale: 1.0", overrides=[("seeds", "3")])
    assert "-p scale is given twice, as 1 and as 2" in refused("scale: 1.0", overrides=[("scale", "1"), ("scale", "2")])
    assert "'a' is set on line 1, twice" in refused("scale: 1.0", overrides=[("tasks", "{a: x, a: y}")])


def test_a_file_may_hold_parameters_of_chapters_that_were_not_chosen(project, refused):
    """One file serves the whole book; what is typed must be for the chapters that were typed with it."""
    (project.params / "both.yaml").write_text("scale: 2\ndensity: 0.1\n")
    chosen = {"params": ["both"], "chapters": ("b",)}
    (configuration,), (chapter,) = grid.resolve(project, grid.Request(**chosen))
    assert (configuration.values["density"], chapter.name) == (0.1, "methods/b")
    assert "-p: no chosen chapter has a parameter 'scale'" in refused(
        "density: 0.1", chapters=("b",), overrides=[("scale", "2")]
    )


def test_missing_and_ambiguous_files(project, tmp_path):
    with pytest.raises(ParameterError, match=r"no file of parameters 'ome'\. Did you mean 'one'\?"):
        params.locate(["ome"], project)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one.yaml").write_text("scale: 2.0")
    assert params.locate(["one"], project) == [project.params / "one.yaml"]
    with pytest.raises(ParameterError, match="given twice, or two files with one name: one"):
        params.locate(["one", str(tmp_path / "elsewhere" / "one.yaml")], project)
    (project.params / "one.yaml").unlink()
    with pytest.raises(ParameterError, match=r"write params/tiny-clip\.yaml"):
        params.locate([], project)


def test_the_default_file_is_that_of_the_book(tmp_path):
    everything = dict.fromkeys(["a", "smoke", "tiny-clip", "tiny-clip-lora"], "scale: 1.0")
    project = make_project(tmp_path, **everything)
    assert [path.stem for path in params.locate([], project)] == ["tiny-clip"]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("0.4", 0.4),
        ("1e-3", 0.001),
        ("3", 3),
        ("None", None),
        ("null", None),
        ("False", False),
        ("[0, 1]", [0, 1]),
        ("mnist", "mnist"),
        ("2024-01-01", "2024-01-01"),
        ("a: [", "a: ["),
    ],
)
def test_overrides_are_typed_as_people_type(typed, value):
    changed = params.override(params.Configuration("one", "one.yaml", {"key": 7}, {"key": 1}), [("key", typed)])
    assert changed.values == {"key": value} and type(changed.values["key"]) is type(value)
    assert changed.name.startswith("one+key=") and "/" not in changed.name and " " not in changed.name
    assert changed.where("key") == "-p"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("scale = 1.0\nseeds = list(range(3))", "line 2 of the parameters cell, 'seeds = list.range.3..', is not"),
        ("import torch", "is not `name = literal`"),
        ("a = b = 1", "is not `name = literal`"),
        ("scale = ", "line 1 of the parameters cell is not Python"),
    ],
)
def test_a_parameters_cell_holds_literals(project, source, message):
    write_chapter(project, "methods/a", parameters=source)
    with pytest.raises(ParameterError, match=message):
        chapters.read_all(project)


def test_restrictions_of_a_chapter_are_checked(project):
    write_chapter(project, "methods/a", configurations="some")
    with pytest.raises(ParameterError, match=r"fusionlib\.configurations is 'some'"):
        chapters.read_all(project)
    write_chapter(project, "methods/a", parameters=SIX, keeps=["backbone", "task"])
    with pytest.raises(ParameterError, match=r"fusionlib\.keeps is \['backbone', 'task'\].*backbone, tasks, tuning"):
        chapters.read_all(project)
    write_chapter(project, "methods/a", tunings=["lora", "none"])
    with pytest.raises(
        ParameterError, match=r"fusionlib\.tunings is \['lora', 'none'\]; .*'full', 'lora' and 'l-lora'"
    ):
        chapters.read_all(project)
    write_chapter(project, "methods/a", after="b")
    with pytest.raises(ParameterError, match=r"fusionlib\.after is 'b'"):
        chapters.read_all(project)
    (project.book / "methods" / "a.ipynb").write_text("{")
    with pytest.raises(ParameterError, match="cannot be read as a notebook"):
        chapters.read_all(project)


def test_a_chapter_keeps_values_of_its_own(project):
    write_chapter(project, "methods/text", parameters=SIX + "scale = 1.0", keeps=["backbone", "tasks"])
    given = {"backbone": "tiny-gpt2", "tasks": "tiny-text7", "seeds": [1], "scale": 2.0}
    (text,) = [chapter for chapter in chapters.read_all(project) if chapter.name == "methods/text"]
    (job,) = plan.make([text], [params.Configuration("one", "one.yaml", given, {})], project, force=True)
    assert dict(job.given) == {"seeds": [1], "scale": 2.0}
    assert (job.values["backbone"], job.values["tasks"]) == ("tiny-clip", "tiny8")


def test_fine_tunes_of_all_chapters_are_made_together(project, monkeypatch):
    made = []
    monkeypatch.setattr(preparing, "make_missing", made.append)
    two, texts = "['emoji', 'flags']", SIX.replace("tiny-clip", "tiny-gpt2").replace("tiny8", "tiny-text7")
    write_chapter(project, "methods/a", parameters=SIX.replace("'tiny8'", two), tunings=["full", "lora"])
    write_chapter(project, "methods/b", parameters=texts, tunings=["lora"])  # for which it has no recipe
    found = [chapter for chapter in chapters.read_all(project) if chapter.name in ("methods/a", "methods/b")]
    jobs = plan.make(found, [params.Configuration("one", "one.yaml", {}, {})], project, force=True)
    grid.prepare(grid._parameters(jobs))
    ((*wanted,),) = made
    clip = [("tiny-clip", kind, task) for kind in ("full", "lora") for task in ("emoji", "flags")]
    gpt2 = [("tiny-gpt2", "full", task) for task in SETS["tiny-text7"]]
    assert [(job.backbone, job.kind, *job.tasks) for job in wanted] == clip + gpt2


@pytest.mark.parametrize("value", ["1e-3", "1E+3", "1", ".5", "1_000.0"])
def test_a_number_is_one_however_it_is_written(project, value):
    (project.params / "one.yaml").write_text(f"scale: {value}")
    (configuration,), _ = grid.resolve(project, grid.Request(params=["one"]))
    assert configuration.values["scale"] == float(value)


def test_a_file_elsewhere_never_fills_the_folder_of_one_in_params(project, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("one", "mine", ".hidden", ".."):
        (other / f"{name}.yaml").write_text("scale: 2.0")
    (configuration,), _ = grid.resolve(project, grid.Request(params=[str(other / "one.yaml")]))
    assert configuration.name.startswith("one+in_") and configuration.values == {"scale": 2.0}
    (configuration,), _ = grid.resolve(project, grid.Request(params=[str(other / "mine.yaml")]))
    assert configuration.name == "mine"
    for name in (".hidden", ".."):
        with pytest.raises(ParameterError, match="needs a name that doesn't begin with a dot"):
            grid.resolve(project, grid.Request(params=[str(other / f"{name}.yaml")]))
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ParameterError, match="there is no file of parameters"):
            params.locate([name], project)
        with pytest.raises(ParameterError, match="no chapter matches"):
            grid.resolve(project, grid.Request(params=["one"], chapters=(name,)))
