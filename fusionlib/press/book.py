"""``build``: stage the executed chapters and turn them into a site with jupyter-book, warnings being errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fusionlib.core import FusionError
from fusionlib.press.files import digest, digest_files, read_json, write_text
from fusionlib.press.params import DEFAULT
from fusionlib.press.project import Project
from fusionlib.press.serving import serve as serve_site
from fusionlib.press.staging import source_notebooks, stage

# jupyter-book 1 has no __main__, and its script need not be on the PATH of the Python that runs this.
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


def build(root: Path, *, configurations: Sequence[str] | None = None, serve: bool = False, force: bool = False) -> int:
    """Builds ``_build/html`` from the executed chapters; the exit code.

    Args:
        root: the checkout.
        configurations: which to show, the first one as the chapters; by default all that were run.
        serve: show the site in a browser afterwards, until interrupted.
        force: build all pages, also those that did not change.
    Raises: FusionError, if a chapter was not executed.
    """
    project = Project(root)
    staged, site = root / "_build" / "stage", root / "_build" / "html"
    note = root / "_build" / "book.json"
    if force:
        shutil.rmtree(staged, ignore_errors=True)
    stage(project, staged, configurations or _configurations(project))
    files = [path for path in staged.rglob("*") if path.is_file() and "_build" not in path.relative_to(staged).parts]
    key = digest(digest_files(files, staged))
    if not force and read_json(note).get("key") == key and (site / "index.html").is_file():
        print(f"The book is up to date: {site / 'index.html'}")
    else:
        note.unlink(missing_ok=True)
        if not _jupyter_book(staged, root / "_build" / "book.log"):
            return 1
        _replace(staged / "_build" / "html", site)
        source_notebooks(project, site)
        write_text(note, f'{{"key": "{key}"}}\n')
        print(f"The book is ready: {site / 'index.html'}")
    if serve:
        serve_site(site)
    return 0


def _configurations(project: Project) -> list[str]:
    """The default configuration, then the others of which executed chapters exist, by name.

    Left out are the smoke runs, and what was tried with ``-p``, which has no file in ``params/``.
    """
    known = {path.stem for path in project.params.glob("*.yaml") if not path.stem.startswith("smoke")} - {DEFAULT}
    return [DEFAULT, *sorted(name for name in known if (project.executed / name).is_dir())]


def _jupyter_book(staged: Path, log: Path) -> bool:
    """Runs jupyter-book; on failure prints what it complained about."""
    command = [sys.executable, "-c", _JUPYTER_BOOK, "build", "-W", "-n", "--keep-going", str(staged)]
    start = time.monotonic()
    print("Building the pages ...", flush=True)
    with open(log, "w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONWARNINGS": "ignore"}
            )
        except OSError as error:
            raise FusionError(f"jupyter-book could not be started ({error}); install the book extra.") from error
    text = _COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace"))
    if done.returncode == 0:
        print(f"Built in {time.monotonic() - start:.0f} s.")
        return True
    complaints = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|Error|Exception", line)]
    shown = complaints[:20] or text.splitlines()[-20:]
    print("\n".join(shown).replace(f"{staged}{os.sep}", ""), file=sys.stderr)
    print(
        f"The book was not built: {len(complaints)} complaints, all in {log}. The previous site is kept.",
        file=sys.stderr,
    )
    return False


def _replace(built: Path, site: Path) -> None:
    """Puts the new site in the place of the old one; jupyter-book keeps its own copy for the next build."""
    fresh, old = site.with_name("html.new"), site.with_name("html.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(built, fresh)
    # the first page only sends on to another and names no icon, so that a browser would ask for one that is not there
    index = fresh / "index.html"
    index.write_text(f'<link rel="icon" href="data:,">\n{index.read_text(encoding="utf-8")}', encoding="utf-8")
    if site.exists():
        site.rename(old)
    fresh.rename(site)
    shutil.rmtree(old, ignore_errors=True)
