"""What ``train`` and ``fetch`` are asked with: keys that nobody knows and values of another type are refused first."""

import pytest
from press_helpers import make_project, write_chapter

from fusionlib.press.cli import main
from fusionlib.zoo import training
from fusionlib.zoo.hub import fetching


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A checkout with a chapter that has num_examples; what is asked of training and the hub ends up here."""
    mine = "backbone: tiny-clip\ntasks: [flags]\nnum_examples: 8\n"
    project = make_project(tmp_path / "checkout", mine=mine, odd=mine + "pretraind: x\n")
    write_chapter(project, "methods/a", parameters="num_examples = 4")
    monkeypatch.chdir(project.root)
    seen = []
    monkeypatch.setattr(training, "train", lambda *given, **more: seen.append((given, more)) or "folder")
    monkeypatch.setattr(fetching, "fetch", lambda needed, say: seen.append([repo.name for repo in needed]))
    return seen


TRAIN = ["train", "--task", "flags", "--params"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TRAIN, "mine", "-p", "scal", "1"], "Error: -p: 'scal' is not known. Allowed: backbone, device,"),
        ([*TRAIN, "mine", "-p", "num_examples", "1"], "Error: -p: 'num_examples' is not known."),
        ([*TRAIN, "mine", "-p", "tunning", "lora"], "'tunning' is not known. Did you mean 'tuning'?"),
        ([*TRAIN, "odd"], "odd.yaml, line 4: 'pretraind' is not known. Did you mean 'pretrained'?"),
        ([*TRAIN, "mine", "-p", "seeds", "[0]", "-p", "seeds", "[1]"], "-p: 'seeds' is set more than once"),
        ([*TRAIN, "mine", "-p", "backbone", "3"], "-p: backbone=3 must be a string"),
        (["fetch", "-p", "backbone", "3"], "-p: backbone=3 must be a string: a name in the zoo or a hub id."),
        (["fetch", "-p", "backbone", "[gpt2]"], "-p: backbone=['gpt2'] must be a string"),
        (["fetch", "-p", "backbone", "gpt2", "-p", "tasks", "3"], "-p: tasks=3 must be the name of a set, a list"),
        (["fetch", "-p", "backbone", "gpt2", "-p", "tasks", "[3]"], "-p: tasks=[3] must be the name of a set"),
        (["fetch", "-p", "tasks", "null"], "-p: tasks=None must be the name of a set"),
        (["fetch", "-p", "tuning", "3"], "-p: tuning=3 must be a string"),
        (["fetch", "-p", "backbon", "gpt2"], "-p: 'backbon' is not known. Did you mean 'backbone'?"),
        (["fetch", "-p", "tasks", "glue7", "-p", "tasks", "ta8"], "-p: 'tasks' is set more than once"),
        (["run", "-p", "num_examples", "1", "-p", "num_examples", "2"], "-p: 'num_examples' is set more than once"),
    ],
)
def test_refused(asked, capsys, arguments, message):
    assert main(arguments) == 2 and asked == []
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_taken(asked):
    assert main([*TRAIN, "mine", "-p", "seeds", "[3]"]) == 0
    ((given, more),) = asked
    assert given == ("tiny-clip", ["flags"], "flags") and more["seed"] == 3
    assert main(["fetch", "--params", "mine"]) == 0 and len(asked) == 1, "nothing of it is on the hub"
    assert main(["fetch", "-p", "backbone", "owner/model", "-p", "tasks", "{mine: absent/data}"]) == 0
    assert asked[1] == ["owner/model"]
