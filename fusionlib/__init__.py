"""Deep model fusion: ensembles, merges and mixtures behind one small interface.

``import fusionlib`` itself loads next to nothing, not even torch; everything loads on first use. Import it
before torchvision, timm, open_clip or peft: it makes them importable beside a CPU build of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fusionlib import _home, _torchvision

_torchvision.cure_when_imported()
_home.settle()

__version__ = "0.1.0"

# public name -> module that holds it; a None attribute means the module itself
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "load_suite": ("fusionlib.zoo.suite", "load_suite"),
    "Suite": ("fusionlib.zoo.suite", "Suite"),
    "fuse": ("fusionlib.bench.run", "fuse"),
    "run": ("fusionlib.bench.run", "run"),
    "run_every": ("fusionlib.bench.every", "run_every"),
    "merge": ("fusionlib.bench.merging", "merge"),
    "references": ("fusionlib.bench.references", "references"),
    "reestimate_batch_norm": ("fusionlib.bench.batch_norm", "reestimate_batch_norm"),
    "save": ("fusionlib.bench.saving", "save"),
    "load": ("fusionlib.bench.saving", "load"),
    "evaluate": ("fusionlib.bench.evaluate", "evaluate"),
    "calibration": ("fusionlib.bench.calibration", "calibration"),
    "accuracy": ("fusionlib.bench.scores", "accuracy"),
    "sweep": ("fusionlib.bench.search", "sweep"),
    "tune": ("fusionlib.bench.search", "tune"),
    "grid": ("fusionlib.bench.search", "grid"),
    "glue": ("fusionlib.bench.notebook", "glue"),
    "check_parameters": ("fusionlib.bench.notebook", "check_parameters"),
    "records": ("fusionlib.bench.records", None),
    "tables": ("fusionlib.bench.tables", None),
    "plots": ("fusionlib.bench.plots", None),
    "methods": ("fusionlib.methods", None),
    "ops": ("fusionlib.ops", None),
    "testing": ("fusionlib.testing", None),
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from fusionlib import methods, ops, testing
    from fusionlib.bench import plots, records, tables
    from fusionlib.bench.batch_norm import reestimate_batch_norm
    from fusionlib.bench.calibration import calibration
    from fusionlib.bench.evaluate import evaluate
    from fusionlib.bench.every import run_every
    from fusionlib.bench.merging import merge
    from fusionlib.bench.notebook import check_parameters, glue
    from fusionlib.bench.references import references
    from fusionlib.bench.run import fuse, run
    from fusionlib.bench.saving import load, save
    from fusionlib.bench.scores import accuracy
    from fusionlib.bench.search import grid, sweep, tune
    from fusionlib.zoo.suite import Suite, load_suite


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fusionlib' has no attribute {name!r}")
    module_name, attribute = _PUBLIC[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
