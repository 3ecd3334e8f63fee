"""Where a number came from: hashes of the code that made it, versions, device, commit."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import platform
import subprocess
import textwrap
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fusionlib
from fusionlib.core import FusionMethod, ParameterError

REFERENCES = ("pretrained", "finetuned", "multitask")
_PACKAGE = Path(fusionlib.__file__).parent
_COUNTING = ("evaluate", "members", "meters", "dense_meters")  # files of bench that make counts of outputs


def digest(value: Any) -> str:
    """Hash of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def source_hash(name: str) -> str:
    """Hash of the source that determines the counts of a method or reference: its file, what that imports of ours,
    and the evaluation."""
    own = [] if name in REFERENCES else [_PACKAGE / "methods" / f"{name}.py"]
    return _hash_with_shared([path.read_text(encoding="utf-8") for path in own])


def own_source_hash(method: FusionMethod) -> str:
    """The same for a method of the user's: the source of its module, or of ``fuse`` if it is no module.

    Raises: ParameterError, if there is no source to read.
    """
    try:
        return _hash_with_shared([inspect.getsource(method if isinstance(method, ModuleType) else method.fuse)])
    except (OSError, TypeError) as error:
        raise ParameterError(
            f"the source of {method.card.name!r} can't be read ({error}), so its records could not be told from those "
            "of another version. Put card and fuse in a file, and pass the imported module."
        ) from error


def _hash_with_shared(sources: list[str]) -> str:
    """Hash of these sources, of the evaluation, and of the parts of ops and core that any of them imports."""
    texts = [*sources, *((_PACKAGE / "bench" / f"{name}.py").read_text(encoding="utf-8") for name in _COUNTING)]
    found: dict[str, str] = {}
    waiting = [name for text in texts for name in _shared_imports(text)]
    while waiting:
        name = waiting.pop()
        path = _PACKAGE / f"{name}.py"
        if name not in found and path.is_file():
            found[name] = path.read_text(encoding="utf-8")
            waiting += _shared_imports(found[name])
    return digest([sorted(found.items()), *texts])


def _shared_imports(source: str) -> list[str]:
    """Files of ops and core that a source imports, such as "ops/trim"; all of ops where it imports more than names."""
    names = []
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            if module in ("fusionlib", "fusionlib.ops"):
                names += [f"ops/{path.stem}" for path in sorted((_PACKAGE / "ops").glob("*.py"))]
            elif module.startswith(("fusionlib.ops.", "fusionlib.core")):
                names.append(module.removeprefix("fusionlib.").replace(".", "/"))
    return names


@functools.cache
def versions() -> dict[str, str]:
    """Versions that can change a result's bits."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), "fusionlib": fusionlib.__version__, **packages}


def provenance(version: int, source: str, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Everything about a record that is neither its question nor its answer."""
    return {
        "method_version": version,
        "source": source,
        "suite": fingerprint,
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that fusionlib runs from, with "+" if it was changed; None outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=_PACKAGE,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
