"""The book is built from executed chapters, complains about what is broken, and loads nothing from outside."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import SHOWN

from fusionlib.core import FusionError
from fusionlib.press import book
from fusionlib.press.book import build
from fusionlib.press.project import Project
from fusionlib.press.staging import stage

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.book


class Assets(HTMLParser):
    """Everything that a browser loads by itself when it opens the page."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "audio") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loaded.append(found["href"])


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def test_every_page_of_the_contents_is_there(site):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    assert len(files) > 10
    for file in files:
        text = (site / f"{file}.html").read_text(encoding="utf-8")
        assert "<h1>" in text, file


def test_every_chapter_is_in_the_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])}
    sources = [p for kind in ("ipynb", "md") for p in (ROOT / "book").rglob(f"*.{kind}") if ".ipynb_ch" not in str(p)]
    assert {path.relative_to(ROOT).with_suffix("").as_posix() for path in sources} == listed


def test_nothing_is_loaded_from_outside(site):
    outside = {}
    for page in pages(site):
        parser = Assets()
        parser.feed(page.read_text(encoding="utf-8"))
        found = [url for url in parser.loaded if re.match(r"(https?:)?//", url)]
        missing = [
            url
            for url in parser.loaded
            if not re.match(r"(https?:)?//|data:", url) and not (page.parent / url.split("?")[0]).exists()
        ]
        if found or missing:
            outside[page.name] = found + missing
    assert outside == {}
    styles = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    assert re.findall(r"url\(['\"]?(https?:)?//[^)]*\)", styles) == []


def test_download_buttons_give_the_source(site):
    page = (site / "book/methods/ties_merging.html").read_text(encoding="utf-8")
    assert "_sources/book/methods/ties_merging.ipynb" in page
    given = json.loads((site / "_sources/book/methods/ties_merging.ipynb").read_text(encoding="utf-8"))
    assert given == json.loads((ROOT / "book/methods/ties_merging.ipynb").read_text(encoding="utf-8"))


def test_numbers_of_the_prose_are_those_of_the_run(site):
    """``{glue:text}`` shows what the executed cells kept, with its sign."""
    page = (site / "book/methods/ties_merging.html").read_text(encoding="utf-8")
    shown = re.findall(r'<span class="pasted-text">([^<]*)</span>', page)
    numbers = [text for text in shown if re.fullmatch(r"[+\N{MINUS SIGN}]?[\d.]+", text)]
    words = [text for text in shown if text not in numbers]
    assert len(numbers) > 8 and all(numbers)
    assert all(re.search("[a-z%]", text) and not re.search(r"\bnan\b|-\d", text) for text in words), words
    assert "glue:text" not in page


def test_a_second_build_has_nothing_to_do(site, smoke_project, capsys):
    assert build(smoke_project, configurations=SHOWN) == 0
    assert "up to date" in capsys.readouterr().out


def test_another_configuration_is_a_page_below_its_chapter(site, smoke_project):
    staged = smoke_project / "_build" / "stage"
    page = json.loads((staged / "book/methods/ties_merging/again.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in page["cells"])
    assert text.startswith("# TIES-Merging: again") and "## What the knobs do" in text and "## Why" not in text
    assert "ties_merging/again" in (staged / "_toc.yml").read_text(encoding="utf-8")
    assert (site / "book/methods/ties_merging/again.html").is_file()


def test_a_chapter_that_was_not_run_is_named(smoke_project, tmp_path):
    with pytest.raises(FusionError, match=r"methods/ties_merging.* Run `fusionlib run --params tiny-clip`"):
        stage(Project(smoke_project), tmp_path / "stage", ["tiny-clip"])


def test_a_broken_reference_fails_the_build_and_keeps_the_old_site(site, smoke_project, tmp_path, capsys):
    root = tmp_path / "project"
    shutil.copytree(smoke_project, root, ignore=shutil.ignore_patterns("_build"))
    shutil.copytree(smoke_project / "_build", root / "_build")
    page = root / "book" / "notation.md"
    page.write_text(page.read_text(encoding="utf-8") + "\nSee {ref}`nowhere <ch-nowhere>`.\n", encoding="utf-8")
    assert build(root, configurations=SHOWN) == 1
    assert "ch-nowhere" in capsys.readouterr().err
    assert (root / "_build/html/index.html").is_file()


def test_plain_jupyter_book_accepts_the_configuration(smoke_project, tmp_path):
    """``jupyter-book build .`` on the sources, whose chapters hold no numbers and no figures to refer to yet."""
    root = tmp_path / "project"
    shutil.copytree(smoke_project, root, ignore=shutil.ignore_patterns("_build"))
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "."]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    absent = re.compile(r"glue|undefined label: 'fig-", flags=re.I)
    complaints = [line for line in done.stderr.splitlines() if "WARNING" in line and not absent.search(line)]
    assert done.returncode == 0 and complaints == [], complaints[:5]
    assert (root / "_build/html/book/methods/ties_merging.html").is_file()


def test_what_was_tried_by_hand_stays_out_of_the_book(smoke_project, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(smoke_project / "params", root / "params")
    for name in ("tiny-clip", "tiny-clip-lora", "tiny-clip+scale=0.4", "smoke", "smoke+scale=0.4"):
        (root / "_build" / "executed" / name).mkdir(parents=True)
    assert book._configurations(Project(root)) == ["tiny-clip", "tiny-clip-lora"]
