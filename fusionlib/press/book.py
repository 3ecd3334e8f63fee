"""``build``: stage the executed chapters and turn them into a site with jupyter-book, warnings being errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fusionlib.core import FusionError
from fusionlib.press.files import digest, digest_files, read_json, write_text
from fusionlib.press.params import DEFAULT
from fusionlib.press.project import Project
from fusionlib.press.serving import serve as serve_site
from fusionlib.press.staging import source_notebooks, stage
from fusionlib.zoo.environment import one_core

# jupyter-book 1 has no __main__, and its script need not be on the PATH of the Python that runs this.
# It must not go on writing when whoever waits for it has been killed.
_JUPYTER_BOOK = (
    "from fusionlib.press.process import die_with_parent; die_with_parent({parent}); "
    "from jupyter_book.cli.main import main; main()"
)
_FINISHED = "build finished with problems"  # what Sphinx says at the end of a build with complaints
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


def build(root: Path, *, configurations: Sequence[str] | None = None, serve: bool = False, force: bool = False) -> int:
    """Builds ``_build/html`` from the executed chapters; the exit code.

    Args:
        root: the checkout.
        configurations: which to show, the first one as the chapters; by default all that were run.
        serve: show the site in a browser afterwards, until interrupted.
        force: build all pages, also those that did not change.
    Raises: FusionError, if a chapter was not executed, if another build is at work, or if nothing can be written.
    """
    project = Project(root)
    site = root / "_build" / "html"
    with _alone(root / "_build"):
        if not _build(project, configurations or _configurations(project), site, force):
            return 1
    if serve:
        serve_site(site)
    return 0


def _build(project: Project, configurations: Sequence[str], site: Path, force: bool) -> bool:
    """Stages and builds; whether the site is there.

    The note beside the site says what it was built from, and is empty where jupyter-book came to its end with
    complaints. Without a note a build was broken off, and what it left (Sphinx's index of words, for one) may be half
    written.
    """
    staged, note = site.with_name("stage"), site.with_name("book.json")
    if force:
        note.unlink(missing_ok=True)
    if not note.is_file():
        shutil.rmtree(staged if force else staged / "_build", ignore_errors=True)
    stage(project, staged, configurations)
    files = [path for path in staged.rglob("*") if path.is_file() and "_build" not in path.relative_to(staged).parts]
    key = digest(digest_files(files, staged))
    if not force and read_json(note).get("key") == key and (site / "index.html").is_file():
        print(f"The book is up to date: {site / 'index.html'}")
        return True
    note.unlink(missing_ok=True)
    log = site.with_name("book.log")
    if not _jupyter_book(staged, log):
        if _FINISHED in log.read_text(encoding="utf-8", errors="replace"):
            write_text(note, "{}\n")
        return False
    _replace(staged / "_build" / "html", site)
    source_notebooks(project, site)
    write_text(note, f'{{"key": "{key}"}}\n')
    print(f"The book is ready: {site / 'index.html'}")
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other build writes below this folder; an error of the file system becomes a sentence."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "book.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise FusionError(f"another `fusionlib book` is building in {folder}: wait for it, or end it first.") from None
    except OSError as error:
        if isinstance(error, FusionError):
            raise
        raise FusionError(
            f"the book cannot be written to {folder}: {error}. Free some space or change its permissions, then build "
            "again."
        ) from error


def _configurations(project: Project) -> list[str]:
    """The default configuration, then the others of which executed chapters exist, by name.

    Left out are the smoke runs, and what was tried with ``-p``, which has no file in ``params/``.
    """
    known = {path.stem for path in project.params.glob("*.yaml") if not path.stem.startswith("smoke")} - {DEFAULT}
    return [DEFAULT, *sorted(name for name in known if (project.executed / name).is_dir())]


def _jupyter_book(staged: Path, log: Path) -> bool:
    """Runs jupyter-book; on failure prints what it complained about."""
    code = _JUPYTER_BOOK.format(parent=os.getpid())
    command = [sys.executable, "-c", code, "build", "-W", "-n", "--keep-going", str(staged)]
    environment = {**os.environ, "PYTHONPATH": one_core()["PYTHONPATH"], "PYTHONWARNINGS": "ignore"}
    start = time.monotonic()
    print("Building the pages ...", flush=True)
    with open(log, "w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
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
