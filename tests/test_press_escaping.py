"""Text of users in pages, tables and the terminal: shown as it was written, never HTML, Markdown or a box's end."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from bench_helpers import make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from press_helpers import make_project, write_chapter
from rich.console import Console

import fusionlib as fl
from fusionlib.bench.published_tables import Folded
from fusionlib.bench.table import Cell, Facts, Table, markdown
from fusionlib.core import ParameterError
from fusionlib.press.display import Display
from fusionlib.press.files import write_text
from fusionlib.press.plan import Job
from fusionlib.press.project import status_file
from fusionlib.press.staging import stage

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "```\n\n<b>out</b>\n\n```{raw} html\n<i>raw</i>\n```",
    "[click](javascript:alert(1)) ![x](http://x/y.png)",
    "{{ substitution }} {raw}`html` {glue:text}`x`",
    "$\\frac$ $$a$$ **bold** _it_ `code` ~~s~~",
    "a | b\n| --- |\n# head\n- item\n1. one",
    "<!-- ", "&lt;b&gt; &#60;", ":::{note}\nx\n:::", "===", "- x", "+++", "% comment", "(label)=", "> quote",
]  # fmt: skip
ALLOWED = {"p", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "h1", "div"}


class Seen(HTMLParser):
    """The tags and the text of some HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def rendered(text):
    """What MyST, which the book is read with, makes of Markdown; a directive is shown by its own text."""
    from markdown_it import MarkdownIt

    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def plain(text):
    """As it can stand in one line of a page."""
    return re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize("text", NASTY)
def test_tables_show_it_in_both_forms(text):
    table = Table([text, "b"], [[Cell(text, number=False), Cell(text, "best")]], note=text, facets={text: [text]})
    html = Seen(table._repr_html_())
    assert (
        html.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "strong", "p"} and html.text.count(text) == 4
    )
    shown = rendered(table._repr_markdown_())
    assert shown.tags <= ALLOWED and plain(shown.text).count(plain(text)) == 4
    folded = Folded(text, Table(["a"], [[Cell("b")]]))
    assert Seen(folded._repr_html_()).tags - {"details", "summary"} <= ALLOWED
    assert plain(rendered(folded._repr_markdown_()).text).startswith(plain(text))
    facts = Seen(Facts(text, [(text, text)])._repr_html_())
    assert facts.tags <= {"dl", "div", "dt", "dd", "wbr"} and facts.text.count(text) == 2


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.one_of(st.sampled_from("<>&`*_[](){}#+-=!|~$\\:'\"1. \n"), st.characters(codec="utf-8")), max_size=12)
)
def test_any_text_in_markdown_is_shown_as_it_is(text):
    wanted = plain(re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+", " ", text))
    shown = rendered(f"before\n\n{markdown(text)}\n\nafter")
    assert shown.tags <= {"p"} and plain(shown.text) == plain(f"before {wanted} after")
    assert plain(rendered(f"| a | b |\n|--|--|\n| {markdown(text)} | c |").text) == plain(f"a b {wanted} c")


@pytest.mark.parametrize("text", NASTY)
def test_records_with_such_names(text):
    made = [
        make_record(counts={text: (80, 100)}, hyperparameters={"scale": text}),
        make_record(text, counts={text: (70, 100)}, hyperparameters={text: text}),
        make_record("finetuned", counts={text: (90, 100)}),
    ]
    for table in (fl.tables.leaderboard(made), fl.tables.by_task(made), fl.tables.plain([text], [[text]])):
        assert Seen(table._repr_html_()).tags <= {
            "div",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "strong",
            "u",
            "p",
        }
        assert rendered(table._repr_markdown_()).tags <= ALLOWED


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path / "checkout")
    write_text(project.root / "_toc.yml", yaml.safe_dump({"parts": [{"chapters": [{"file": "book/methods/vote"}]}]}))
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "(ch-vote)=\n# The vote\n\n## On the suite\n"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    write_text(project.book / "methods" / "vote.ipynb", json.dumps(notebook))
    return project


def staged(project, folder, *configurations):
    """The last page's Markdown."""
    stage(project, folder, configurations)
    pages = sorted((folder / "book").rglob("*.ipynb"), key=lambda path: len(path.parts))
    return json.loads(pages[-1].read_text())["cells"][0]["source"]


@pytest.mark.parametrize("text", NASTY)
def test_a_reason_stays_in_its_box(project, tmp_path, text):
    status = {"status": "skipped", "failure": {"error": "NotApplicable", "message": text}}
    write_text(status_file(project.executed_copy("one", "methods/vote")), json.dumps(status))
    page = staged(project, tmp_path / "stage", "one")
    head, box = page.split("```{admonition} Does not apply to these models or tasks\n")
    inside, end = box.split("\n```")
    assert head == "(ch-vote)=\n# The vote\n\n" and end == "" and "\n" not in inside
    shown = rendered(inside)
    assert shown.tags <= {"p"} and plain(shown.text) == plain(text[0].upper() + text[1:])


@pytest.mark.parametrize("text", [name for name in NASTY if not set(name) & set("/\\\n")])
def test_the_name_of_a_configuration_is_text(project, tmp_path, text):
    source = (project.book / "methods" / "vote.ipynb").read_text()
    write_text(project.executed_copy("one", "methods/vote"), source)
    for status, name in (("done", text), ("skipped", f"{text} ")):
        copy = project.executed_copy(name, "methods/vote")
        about = {"status": status, "failure": {"message": "no"}, "parameters": {"scale": text}}
        write_text(status_file(copy), json.dumps(about))
        if status == "done":
            write_text(copy, source)
        first = staged(project, tmp_path / status, "one", name).splitlines()[0]
        shown = rendered(first)
        assert shown.tags == {"h1"} and plain(shown.text) == plain(f"The vote: {text}")


@pytest.mark.parametrize("name", [".lock", "..", ".", "a\nb", "a/b", "..\\b"])
def test_names_that_can_be_no_folder_are_refused(project, name):
    with pytest.raises(ParameterError, match="can't have a folder of that name"):
        project.executed_copy(name, "methods/vote")


@pytest.mark.parametrize("text", ["[/red]", "[bold]", "a[b].c"])
def test_the_terminal_shows_names_as_they_are(tmp_path, text):
    project = make_project(tmp_path / "checkout")
    path = write_chapter(project, "methods/a")
    from fusionlib.press.chapters import read

    job = Job(0, read(path, project.book), text, {}, {}, path, {}, "", None)
    output = io.StringIO()
    display = Display([job], 1, Console(file=output, width=100))
    display.started(job)
    Console(file=output, width=100).print(display._table())
    display.ended(job, "done")
    assert output.getvalue().count(f"methods/a ({text})") == 3
