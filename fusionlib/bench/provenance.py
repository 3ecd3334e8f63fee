"""Where a number came from: hashes of the code that made it, versions, device, commit."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fusionlib
from fusionlib import methods

REFERENCES = ("pretrained", "finetuned", "multitask")
_PACKAGE = Path(fusionlib.__file__).parent


def digest(value: Any) -> str:
    """Hash of a JSON value, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def source_hash(method: str) -> str:
    """Hash of the source that determines a method's counts: its file, ops, core and the evaluation.

    A method that is not in fusionlib/methods (a module of the user's) is hashed by its own file.
    """
    files = [*sorted((_PACKAGE / "ops").glob("*.py")), _PACKAGE / "core.py", _PACKAGE / "bench" / "evaluate.py"]
    if method not in REFERENCES:
        own = _PACKAGE / "methods" / f"{method}.py"
        files.append(own if own.is_file() else Path(sys.modules[method].__file__ or ""))
    return digest([[path.name, path.read_text(encoding="utf-8")] for path in files])


@functools.cache
def versions() -> dict[str, str]:
    """Versions that can change a result's bits."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), "fusionlib": fusionlib.__version__, **packages}


def provenance(method: str, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Everything about a record that is neither its question nor its answer."""
    known = method not in REFERENCES
    return {
        "method_version": methods.get(method).card.version if known and method in methods.names() else 1,
        "source": source_hash(method),
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
