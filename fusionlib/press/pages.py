"""Pages of executed chapters: below a chapter the results of another configuration, or the reason for none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fusionlib.bench.escape import escaped
from fusionlib.press.files import read_json
from fusionlib.press.project import status_file

# the sections that differ between configurations: of a method's chapter, and of a suite's
RESULTS = ("On the suite", "What the knobs do", "The fine-tunes", "Where the fine-tunes lie", "Unseen tasks")
_SHOWN = re.compile(r"\{glue:text\}`([^`:]+)")
_LABEL = re.compile(r"^\([^)\n]+\)=\s*\n", flags=re.M)


def page_below(executed: Path, source: Path, chapter: str, configuration: str) -> bytes | None:
    """What a configuration has to say below a chapter: results, why there are none, or nothing."""
    if executed.is_file():
        return _results_page(executed, chapter, configuration)
    # a chapter about one suite has nothing to say of another
    reason = reason_of(executed) if chapter.startswith("methods/") else None
    return None if reason is None else reason_page(source, reason, chapter, configuration)


def reason_of(executed: Path) -> str | None:
    """Why a chapter was skipped; None if it was not."""
    status = read_json(status_file(executed))
    return status["failure"]["message"] if status.get("status") == "skipped" else None


def reason_page(source: Path, reason: str, chapter: str = "", configuration: str = "") -> bytes:
    """A page that says why a method does not apply; in the chapter's own place it keeps the chapter's label."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    title = re.findall(r"^# (.+)$", first, flags=re.M)[0]
    if configuration:
        head = f"# {title}: {escaped(configuration)}\n\n[{title}]({_up(chapter)}{chapter}.ipynb) explains the method."
    else:
        head = f"{''.join(_LABEL.findall(first))}# {title}"
    title = "Does not apply to these models or tasks"
    text = f"{head}\n\n```{{admonition}} {title}\n{escaped(reason[:1].upper() + reason[1:])}\n```"
    return dump({**notebook, "cells": [{"cell_type": "markdown", "id": "reason", "metadata": {}, "source": text}]})


def _up(chapter: str) -> str:
    """From a page below a chapter to the folder of the chapters."""
    return "../" * (chapter.count("/") + 1)


def _results_page(executed: Path, chapter: str, configuration: str) -> bytes | None:
    """The sections with results of an executed chapter, as a page of its own; None if it has no such section."""
    notebook = json.loads(executed.read_text(encoding="utf-8"))
    kept: list[dict[str, Any]] = []
    heading = title = ""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            title = title or "".join(re.findall(r"^# (.+)$", text, flags=re.M)[:1])
            found = re.findall(r"^## (.+)$", text, flags=re.M)
            heading = found[-1] if found else heading
        if heading in RESULTS:
            kept.append(_renamed(cell, configuration))
    if not kept:
        return None
    kept += _values_from_elsewhere(kept, notebook["cells"])
    values = read_json(status_file(executed)).get("parameters", {})
    listed = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    head = (
        f"# {title}: {escaped(configuration)}\n\nThe results of [{title}]({_up(chapter)}{chapter}.ipynb) for another "
        f"configuration; the chapter explains them.\n\n```yaml\n{listed}\n```"
    )
    cells = [{"cell_type": "markdown", "id": "results-head", "metadata": {}, "source": head}, *kept]
    return dump({**notebook, "cells": cells})


def _values_from_elsewhere(kept: list[dict[str, Any]], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells, out of sight, that hold the values which the prose of the kept ones shows and their code does not make."""
    shown = {key for cell in kept for key in _SHOWN.findall("".join(cell["source"]))}
    shown -= {key for cell in kept for key in _glued(cell)}
    return [
        {**cell, "metadata": {**cell["metadata"], "tags": ["remove-cell"]}} for cell in cells if shown & _glued(cell)
    ]


def _glued(cell: dict[str, Any]) -> set[str]:
    """Names under which a cell has kept values for the prose."""
    notes = [output.get("metadata", {}).get("scrapbook", {}) for output in cell.get("outputs", [])]
    return {note["name"] for note in notes if "name" in note}


def _renamed(cell: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The cell without labels and with figure names of its own, so that nothing is defined twice in the book."""
    if cell["cell_type"] == "markdown":
        return {**cell, "source": _LABEL.sub("", "".join(cell["source"]))}
    metadata = json.loads(json.dumps(cell["metadata"]))
    figure = metadata.get("mystnb", {}).get("figure", {})
    if "name" in figure:
        figure["name"] += f"-{configuration}"
    return {**cell, "metadata": metadata}


def dump(notebook: dict[str, Any]) -> bytes:
    """The notebook without what changes from run to run and is not shown: times, durations, papermill's notes."""
    for cell in notebook["cells"]:
        for noise in ("papermill", "execution"):
            cell["metadata"].pop(noise, None)
    notebook["metadata"].pop("papermill", None)
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
