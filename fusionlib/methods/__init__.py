"""One file per fusion method; this folder is the registry.

A method is a module with a ``card`` (:class:`fusionlib.core.MethodCard`) and a function ``fuse``. Nothing is
registered at import: ``from fusionlib.methods import ties_merging`` is the normal way to use one.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import cast

from fusionlib.core import FusionMethod, UnknownName, suggest


def names() -> list[str]:
    """Names of all methods, sorted; a file with a leading underscore is private."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str | ModuleType | FusionMethod) -> FusionMethod:
    """The method of this name; a method module is returned as it is.

    Raises: UnknownName, with the close match, if there is no such file.
    """
    if not isinstance(name, str):
        return cast(FusionMethod, name)
    if name not in names():
        raise UnknownName(f"no fusion method is called {name!r}.{suggest(name, names())}")
    return cast(FusionMethod, importlib.import_module(f"{__name__}.{name}"))
