"""What an executed chapter depends on, hashed part by part so that a dry run can say what has changed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from fusionlib.press.chapters import Chapter
from fusionlib.press.files import digest, digest_files
from fusionlib.press.project import Project

_PACKAGES = ("torch", "transformers", "peft", "datasets", "safetensors", "numpy", "pandas", "pillow", "matplotlib")


def parts(chapter: Chapter, values: Mapping[str, Any], common: Mapping[str, str], project: Project) -> dict[str, str]:
    """Part -> hash of everything that determines the executed copy.

    Args:
        values: all the chapter's parameters, defaults included.
        common: what :func:`common` found.
    """
    found = {
        "notebook": chapter.identity,
        "parameters": digest(dict(values)),
        **common,
        "suite": suite(values, project.root),
    }
    if chapter.last:
        found["records"] = records(project)
    return found


def common() -> dict[str, str]:
    """The parts that are the same for all chapters."""
    return {"library": library(), "packages": packages()}


def library() -> str:
    """Hash of fusionlib's source and embedded data; the press, which computes nothing, does not count."""
    package = Path(__file__).parents[1]
    files = [
        path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and package / "press" not in path.parents
    ]
    return digest_files(files, package)


def packages() -> str:
    """Hash of the versions of Python and of the packages that compute or draw."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return digest([versions, platform.python_version(), platform.machine()])


def suite(values: Mapping[str, Any], root: Path) -> str:
    """Hash of what the parameters point to: the device that "auto" means, and files under local paths.

    The embedded suite is fixed by the library's source and data, unless its training was shortened, a hub id by its
    name.
    """
    from fusionlib.zoo.names import resolve_device
    from fusionlib.zoo.recipe import step_share

    device = str(resolve_device(values["device"])) if "device" in values else None
    tasks = values.get("tasks")
    entries = tasks.values() if isinstance(tasks, dict) else ()
    places = [place for entry in entries for place in (entry.values() if isinstance(entry, dict) else [entry])]
    named = [values.get("backbone"), *places]
    listings = (_listing(root / Path(name).expanduser()) for name in named if isinstance(name, str))
    return digest([device, step_share(), *listings])


def records(project: Project) -> str:
    """Hash of the records that a results chapter reads: the user's, and those committed with the book."""
    from fusionlib.zoo.files import home

    found = [
        [str(index), digest_files(folder.rglob("*.jsonl"), folder)]
        for index, folder in enumerate((home() / "records", project.book / "records"))
        if folder.is_dir()
    ]
    return digest(found)


def _listing(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files at a path; empty if there is none."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    return [(item.relative_to(path.parent).as_posix(), (s := item.stat()).st_size, s.st_mtime_ns) for item in files]
