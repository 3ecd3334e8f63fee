"""Tasks, backbones, heads and fine-tunes: everything that makes a Suite."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

# loaded on first use: they import torch, which a process that only has to watch for its end need not pay for
_LAZY = {
    "home": "fusionlib.zoo.files",
    "load_suite": "fusionlib.zoo.suite",
    "Suite": "fusionlib.zoo.suite",
    "SuiteSpec": "fusionlib.zoo.suite",
    "Task": "fusionlib.zoo.task",
    "CosineHead": "fusionlib.zoo.heads",
    "prepare": "fusionlib.zoo.preparing",
    "missing": "fusionlib.zoo.preparing",
    "train": "fusionlib.zoo.training",
    "train_nyuv2": "fusionlib.zoo.nyuv2_training",
    "nyuv2_suite": "fusionlib.zoo.nyuv2_training",
}

__all__ = [
    "CosineHead",
    "Suite",
    "SuiteSpec",
    "Task",
    "home",
    "load_suite",
    "missing",
    "nyuv2_suite",
    "prepare",
    "train",
    "train_nyuv2",
]

if TYPE_CHECKING:
    from fusionlib.zoo.files import home
    from fusionlib.zoo.heads import CosineHead
    from fusionlib.zoo.nyuv2_training import nyuv2_suite, train_nyuv2
    from fusionlib.zoo.preparing import missing, prepare
    from fusionlib.zoo.suite import Suite, SuiteSpec, load_suite
    from fusionlib.zoo.task import Task
    from fusionlib.zoo.training import train

if "ipykernel" in sys.modules:
    # In a notebook tqdm.auto, which transformers and datasets import, warns that ipywidgets would be nicer.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        importlib.import_module("tqdm.auto")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fusionlib.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
