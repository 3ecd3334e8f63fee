"""The stage: a copy of the book's sources in which every chapter is an executed notebook.

The first configuration gives the chapters; every other one that was run gives a page below its chapter, with
the results and without the explanations. Files are written only where they differ, so that a build redoes
only what changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from fusionlib.core import FusionError
from fusionlib.press.pages import dump, page_below, reason_of, reason_page
from fusionlib.press.project import Project


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
        elif (reason := reason_of(executed)) is not None:
            wanted[relative] = reason_page(path, reason)
        else:
            missing.append(chapter)
            continue
        for other in others:
            copy = project.executed_copy(other, chapter)
            if (page := page_below(copy, path, chapter, other)) is not None:
                below.setdefault(f"book/{chapter}", []).append(f"book/{chapter}/{other}")
                wanted[Path("book") / chapter / f"{other}.ipynb"] = page
    if missing:
        raise FusionError(
            f"{len(missing)} chapters have not been executed for {first!r}: {', '.join(missing)}. "
            f"Run `fusionlib run --params {first}`, or `fusionlib book` without --no-run."
        )
    contents = target / "_toc.yml"
    wanted[Path("_toc.yml")] = _table_of_contents(project.root / "_toc.yml", below)
    if contents.is_file() and contents.read_bytes() != wanted[Path("_toc.yml")]:
        # every page shows the contents, and jupyter-book builds again only the pages that changed themselves
        shutil.rmtree(target / "_build", ignore_errors=True)
    return _write(target, wanted)


def _sources(project: Project) -> Iterator[Path]:
    for path in sorted(project.book.rglob("*")):
        parts = path.relative_to(project.book).parts
        if path.is_file() and not any(part.startswith(".") or part == "records" for part in parts):
            yield path


def _chapter(executed: Path) -> bytes:
    return dump(json.loads(executed.read_text(encoding="utf-8")))


def _table_of_contents(path: Path, below: dict[str, list[str]]) -> bytes:
    toc = yaml.safe_load(path.read_text(encoding="utf-8"))
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            if chapter["file"] in below:
                pages = below[chapter["file"]]
                chapter["sections"] = [{"file": page, "title": page.rsplit("/", 1)[1]} for page in pages]
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
