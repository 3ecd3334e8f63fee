"""The stage: a copy of the book's sources in which every chapter is an executed notebook.

The first configuration gives the chapters; every other one that was run gives a page below its chapter, with
the results and without the explanations. Files are written only where they differ, so that a build redoes
only what changed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fusionlib.core import FusionError
from fusionlib.press.files import read_json
from fusionlib.press.project import Project, status_file

# the sections that differ between configurations: of a method's chapter, and of a suite's
RESULTS = ("On the suite", "What the knobs do", "The fine-tunes", "Where the fine-tunes lie", "Unseen tasks")
_LABEL = re.compile(r"^\([^)\n]+\)=\s*\n", flags=re.M)


def stage(project: Project, target: Path, configurations: Iterable[str]) -> bool:
    """Brings ``target`` up to date; whether anything changed.

    Args:
        configurations: names; the first one gives the chapters.
    Raises: FusionError, naming the command, if a chapter was not run for the first configuration.
    """
    first, *others = configurations
    wanted: dict[Path, bytes] = {Path("_config.yml"): (project.root / "_config.yml").read_bytes()}
    missing = []
    below: dict[str, list[str]] = {}
    for path in _sources(project):
        relative = path.relative_to(project.root)
        if path.suffix != ".ipynb":
            wanted[relative] = path.read_bytes()
            continue
        chapter = path.relative_to(project.book).with_suffix("").as_posix()
        executed = project.executed_copy(first, chapter)
        if executed.is_file():
            wanted[relative] = _chapter(executed)
        elif (reason := _reason(executed)) is not None:
            wanted[relative] = _reason_page(path, reason)
        else:
            missing.append(chapter)
            continue
        for other in others:
            copy = project.executed_copy(other, chapter)
            if (page := _page_below(copy, path, chapter, other)) is not None:
                below.setdefault(f"book/{chapter}", []).append(f"book/{chapter}/{other}")
                wanted[Path("book") / chapter / f"{other}.ipynb"] = page
    if missing:
        raise FusionError(
            f"{len(missing)} chapters have not been executed for {first!r}: {', '.join(missing)}. "
            f"Run `fusionlib run --params {first}`, or `fusionlib book` without --no-run."
        )
    wanted[Path("_toc.yml")] = _table_of_contents(project.root / "_toc.yml", below)
    return _write(target, wanted)


def _sources(project: Project) -> Iterator[Path]:
    for path in sorted(project.book.rglob("*")):
        parts = path.relative_to(project.book).parts
        if path.is_file() and not any(part.startswith(".") or part == "records" for part in parts):
            yield path


def _chapter(executed: Path) -> bytes:
    return _dump(json.loads(executed.read_text(encoding="utf-8")))


def _reason(executed: Path) -> str | None:
    """Why a chapter was skipped; None if it was not."""
    status = read_json(status_file(executed))
    return status["failure"]["message"] if status.get("status") == "skipped" else None


def _page_below(executed: Path, source: Path, chapter: str, configuration: str) -> bytes | None:
    """What a configuration has to say below a chapter: results, why there are none, or nothing."""
    if executed.is_file():
        return _results_page(executed, chapter, configuration)
    # a chapter about one suite has nothing to say of another
    reason = _reason(executed) if chapter.startswith("methods/") else None
    return None if reason is None else _reason_page(source, reason, chapter, configuration)


def _reason_page(source: Path, reason: str, chapter: str = "", configuration: str = "") -> bytes:
    """A page that says why a method does not apply; in the chapter's own place it keeps the chapter's label."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    title = re.findall(r"^# (.+)$", first, flags=re.M)[0]
    if configuration:
        head = f"# {title}: {configuration}\n\n[{title}]({_up(chapter)}{chapter}.ipynb) explains the method."
    else:
        head = f"{''.join(_LABEL.findall(first))}# {title}"
    title = "Does not apply to these models or tasks"
    text = f"{head}\n\n```{{admonition}} {title}\n{reason}\n```"
    return _dump({**notebook, "cells": [{"cell_type": "markdown", "id": "reason", "metadata": {}, "source": text}]})


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
    values = read_json(status_file(executed)).get("parameters", {})
    listed = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    head = (
        f"# {title}: {configuration}\n\nThe results of [{title}]({_up(chapter)}{chapter}.ipynb) for another "
        f"configuration; the chapter explains them.\n\n```yaml\n{listed}\n```"
    )
    cells = [{"cell_type": "markdown", "id": "results-head", "metadata": {}, "source": head}, *kept]
    return _dump({**notebook, "cells": cells})


def _renamed(cell: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The cell without labels and with figure names of its own, so that nothing is defined twice in the book."""
    if cell["cell_type"] == "markdown":
        return {**cell, "source": _LABEL.sub("", "".join(cell["source"]))}
    metadata = json.loads(json.dumps(cell["metadata"]))
    figure = metadata.get("mystnb", {}).get("figure", {})
    if "name" in figure:
        figure["name"] += f"-{configuration}"
    return {**cell, "metadata": metadata}


def _dump(notebook: dict[str, Any]) -> bytes:
    """The notebook without what changes from run to run and is not shown: times, durations, papermill's notes."""
    for cell in notebook["cells"]:
        for noise in ("papermill", "execution"):
            cell["metadata"].pop(noise, None)
    notebook["metadata"].pop("papermill", None)
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _table_of_contents(path: Path, below: dict[str, list[str]]) -> bytes:
    toc = yaml.safe_load(path.read_text(encoding="utf-8"))
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            if chapter["file"] in below:
                chapter["sections"] = [{"file": page} for page in below[chapter["file"]]]
    return yaml.safe_dump(toc, sort_keys=False).encode()


def _write(target: Path, wanted: dict[Path, bytes]) -> bool:
    changed = False
    present = {path.relative_to(target) for path in target.rglob("*") if path.is_file()} if target.is_dir() else set()
    for stale in present - wanted.keys():
        if stale.parts[0] != "_build":
            (target / stale).unlink()
            changed = True
    for relative, content in wanted.items():
        path = target / relative
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            changed = True
    return changed


def source_notebooks(project: Project, site: Path) -> None:
    """Makes the site's download buttons give the notebook as its author wrote it, ready to be run."""
    for path in project.book.rglob("*.ipynb"):
        served = site / "_sources" / path.relative_to(project.root)
        if served.is_file():
            shutil.copyfile(path, served)
