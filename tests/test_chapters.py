"""The form of the chapters: same headings, same parameters, short cells, and code that can be copied."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from torch_alone import ALLOWED

from fusionlib import methods

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "book").rglob("*.ipynb"))
METHODS = [path for path in CHAPTERS if path.parent.name == "methods"]
HEADINGS = [
    "Why",
    "The maths",
    "Setup",
    "From scratch",
    "The same from the library",
    "On the suite",
    "What the knobs do",
    "When it fails",
    "Takeaways",
]
WRONG = {
    "import yaml": "torch alone",
    "1 / 0": "ZeroDivisionError",
    "raise SystemExit(3)": "SystemExit",
    "import os\nos._exit(3)": "status",
}
TAGS = {"parameters", "copy-me", "hide-input", "remove-cell"}


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def parameters(path: Path) -> dict:
    (cell,) = [c for c in cells(path) if "parameters" in tags(c)]
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(source(cell)).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }


def test_every_method_has_a_chapter():
    assert {path.stem for path in METHODS} == set(methods.names())


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_headings(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    assert re.findall(r"^## (.+)$", text, flags=re.M) == HEADINGS
    assert re.findall(r"^### (.+)$", text, flags=re.M)[-3:] == ["Exercises", "Use it on your own models", "References"]
    assert f"(ch-{path.stem.replace('_', '-')})=" in text
    assert ":class: dropdown" in text, "no exercise has a folded solution"
    assert re.search(r"\$\$ \(eq-", text), "no numbered equation"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_parameters_are_the_same_six_everywhere(path):
    first = yaml.safe_load((ROOT / "params" / "tiny-clip.yaml").read_text(encoding="utf-8"))
    kept = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("fusionlib", {}).get("keeps", [])
    own = {key: parameters(path)[key] for key in first}
    assert {**own, **dict.fromkeys(kept)} == {**first, **dict.fromkeys(kept)}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_cells_are_short_and_tags_are_known(path):
    lengths = [len(source(c).splitlines()) for c in cells(path)]
    assert max(lengths) <= 40
    assert statistics.median(lengths) <= 8
    assert {tag for c in cells(path) for tag in tags(c)} <= TAGS
    assert sum("remove-cell" in tags(c) for c in cells(path)) <= 4


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_no_sentence_of_the_prose_stands_twice(path):
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    sentences = [part.strip() for part in re.split(r"(?<=[.;!?])\s|\n", prose)]
    counts = Counter(sentence for sentence in sentences if len(sentence) > 25)
    assert [sentence for sentence, count in counts.items() if count > 1] == []


def copy_me(path: Path) -> str:
    (cell,) = [c for c in cells(path) if "copy-me" in tags(c)]
    return source(cell)


@pytest.fixture(scope="module")
def errors_alone():
    """The error of every chapter's copy-me cell where there is nothing but torch, "" if it ran."""
    if not hasattr(os, "fork"):
        pytest.skip("cells run in forked processes, which this platform has not")
    code = json.dumps({**{path.stem: copy_me(path) for path in METHODS}, **{code: code for code in WRONG}})
    script = Path(__file__).with_name("torch_alone.py")
    done = subprocess.run([sys.executable, script], input=code, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: p.stem)
def test_copy_me_runs_with_torch_alone(errors_alone, path):
    imported = [node for node in ast.walk(ast.parse(copy_me(path))) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or node.names[0].name for node in imported]
    assert {name.split(".")[0] for name in names} <= ALLOWED  # also what torch itself has imported already
    assert errors_alone[path.stem] == ""


@pytest.mark.parametrize("code", WRONG)
def test_a_cell_that_needs_more_or_fails_is_noticed(errors_alone, code):
    assert WRONG[code] in errors_alone[code]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_figures_have_caption_and_alternative_text(path):
    for cell in cells(path):
        if "fl.plots." in source(cell).replace("fl.plots.use_style()", "") or "plt.subplots" in source(cell):
            book = cell["metadata"].get("mystnb", {})
            assert book.get("figure", {}).get("caption"), source(cell)[:80]
            assert book.get("image", {}).get("alt"), source(cell)[:80]
