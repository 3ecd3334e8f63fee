"""The folder of the book: where its parts are, found from any folder inside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlib.core import FusionError, NegativeVariance, NotApplicable, ParameterError


@dataclass(frozen=True)
class Project:
    """A checkout of the book.

    Attributes:
        root: the folder that holds ``_config.yml``, ``book/`` and ``params/``.
    """

    root: Path

    @property
    def book(self) -> Path:
        """Folder of the chapters' sources."""
        return self.root / "book"

    @property
    def params(self) -> Path:
        """Folder of the configurations."""
        return self.root / "params"

    @property
    def executed(self) -> Path:
        """Folder of the executed copies, one folder below it per configuration."""
        return self.root / "_build" / "executed"

    def executed_copy(self, configuration: str, chapter: str) -> Path:
        """Where the executed copy of a chapter lies; ``chapter`` is its path below ``book/``, without suffix.

        Raises: ParameterError for a configuration whose name can't be that of a folder here.
        """
        if configuration.startswith(".") or not configuration.isprintable() or set(configuration) & set("/\\"):
            raise ParameterError(
                f"a configuration called {configuration!r} can't have a folder of that name in {self.executed}: give "
                "its file a name that begins with a letter or digit, such as mine.yaml."
            )
        return self.executed / configuration / f"{chapter}.ipynb"


def find(start: Path | None = None) -> Project:
    """The project around a folder (default: the current one), recognised by ``_config.yml`` beside ``book/``.

    Raises: FusionError, if there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "_config.yml").is_file() and (folder / "book").is_dir():
            return Project(folder)
    raise FusionError(
        f"{here} is not inside a checkout of the book: neither it nor a folder above it holds _config.yml and "
        "book/. Change into the checkout, or clone the repository first."
    )


def status_file(executed: Path) -> Path:
    """The JSON file beside an executed copy: its key, seconds and status ("done", "failed" or "skipped")."""
    return executed.with_suffix(".json")


def failed_copy(executed: Path) -> Path:
    """Where the partly executed notebook of a failed run is kept."""
    return executed.with_suffix(".failed.ipynb")


def outcome_of(failure: Mapping[str, Any] | None) -> str:
    """The status that a run ends with: a chapter about a method that the suite can't have is skipped, not failed."""
    if failure is None:
        return "done"
    return "skipped" if failure.get("error") in (NotApplicable.__name__, NegativeVariance.__name__) else "failed"
