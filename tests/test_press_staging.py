"""What the stage makes of chapters that ran and of those that were skipped, on a miniature book."""

import json

import pytest
import yaml
from press_helpers import make_project

from fusionlib.core import FusionError
from fusionlib.press.files import write_text
from fusionlib.press.project import status_file
from fusionlib.press.staging import stage

HEAD = "(ch-vote)=\n# The vote\n\nEach member has one.\n"


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path / "checkout")
    write_text(project.root / "_toc.yml", yaml.safe_dump({"parts": [{"chapters": [{"file": "book/methods/vote"}]}]}))
    write_text(project.book / "methods" / "vote.ipynb", notebook("## On the suite\n\nMost votes win."))
    return project


def notebook(*texts):
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": text} for text in (HEAD, *texts)]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})


def glued(identity, *names):
    """A code cell that has kept values under these names."""
    outputs = [{"output_type": "display_data", "data": {}, "metadata": {"scrapbook": {"name": n}}} for n in names]
    return {"cell_type": "code", "id": identity, "metadata": {"tags": ["mine"]}, "source": "", "outputs": outputs}


def ran(project, configuration, text):
    copy = project.executed_copy(configuration, "methods/vote")
    write_text(copy, notebook(f"## On the suite\n\n{text}"))
    write_text(status_file(copy), json.dumps({"status": "done", "parameters": {"scale": 1.0}}))


def skipped(project, configuration):
    status = {"status": "skipped", "failure": {"error": "NotApplicable", "message": "depths have no votes."}}
    write_text(status_file(project.executed_copy(configuration, "methods/vote")), json.dumps(status))


def pages(folder):
    found = {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.rglob("*.ipynb")}
    return {name: "\n".join(cell["source"] for cell in page["cells"]) for name, page in found.items()}


def test_a_reason_stands_below_the_chapter_where_results_would(project, tmp_path):
    ran(project, "one", "Seven votes.")
    ran(project, "texts", "Three votes.")
    skipped(project, "maps")
    stage(project, tmp_path / "stage", ["one", "maps", "texts"])
    found = pages(tmp_path / "stage")
    assert sorted(found) == ["book/methods/vote.ipynb", "book/methods/vote/maps.ipynb", "book/methods/vote/texts.ipynb"]
    assert (
        "Seven votes." in found["book/methods/vote.ipynb"] and "Three votes." in found["book/methods/vote/texts.ipynb"]
    )
    reason = found["book/methods/vote/maps.ipynb"]
    assert reason.startswith("# The vote: maps\n\n[The vote](../../methods/vote.ipynb) explains")
    assert "Depths have no votes." in reason and "(ch-vote)=" not in reason
    toc = yaml.safe_load((tmp_path / "stage" / "_toc.yml").read_text())
    below = toc["parts"][0]["chapters"][0]["sections"]
    names = ("maps", "texts")  # beside the chapter's own title there is no need to say it again
    assert below == [{"file": f"book/methods/vote/{name}", "title": name} for name in names]


def test_other_contents_build_every_page_anew(project, tmp_path):
    """Each page shows the contents, and only pages that changed would be built."""
    built = tmp_path / "stage" / "_build" / "html" / "vote.html"
    ran(project, "one", "Seven votes.")
    ran(project, "texts", "Three votes.")
    stage(project, tmp_path / "stage", ["one"])
    write_text(built, "with the contents of then")
    assert not stage(project, tmp_path / "stage", ["one"]) and built.is_file()
    assert stage(project, tmp_path / "stage", ["one", "texts"]) and not built.exists()


def test_a_value_that_the_results_show_comes_along_though_another_section_made_it(project, tmp_path):
    ran(project, "one", "Seven votes.")
    ran(project, "texts", "The results show {glue:text}`seats`, and {glue:text}`votes` made elsewhere.")
    copy = project.executed_copy("texts", "methods/vote")
    page = json.loads(copy.read_text())
    page["cells"] += [
        {"cell_type": "markdown", "id": "next", "metadata": {}, "source": "## When it fails"},
        glued("b", "votes", "more_votes"),
        glued("c", "unrelated"),
    ]
    page["cells"].insert(2, glued("d", "seats"))
    write_text(copy, json.dumps(page))
    stage(project, tmp_path / "stage", ["one", "texts"])
    cells = json.loads((tmp_path / "stage/book/methods/vote/texts.ipynb").read_text())["cells"]
    assert [cell["id"] for cell in cells] == ["results-head", "a", "d", "b"]
    assert [cell["metadata"].get("tags") for cell in cells[2:]] == [["mine"], ["remove-cell"]]


def test_a_reason_in_the_chapters_own_place_keeps_its_label(project, tmp_path):
    skipped(project, "maps")
    stage(project, tmp_path / "stage", ["maps"])
    page = pages(tmp_path / "stage")["book/methods/vote.ipynb"]
    assert page.startswith("(ch-vote)=\n# The vote\n\n```{admonition}") and "Depths have no votes." in page


def test_a_chapter_that_was_neither_run_nor_skipped_is_named(project, tmp_path):
    with pytest.raises(FusionError, match=r"1 chapters have not been executed for 'one': methods/vote"):
        stage(project, tmp_path / "stage", ["one"])
