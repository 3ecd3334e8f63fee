"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

PyPI's torchvision on Linux is a CUDA build. Beside a torch without CUDA its native library does not load,
and importing it (which timm, open_clip, peft and transformers' CLIP all do) dies with "operator
torchvision::nms does not exist", because it registers Python kernels for schemas that library should have
declared. Declaring the two schemas is enough: nothing in this project calls them.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_kept: list[torch.library.Library] = []  # a Library's declarations vanish when it is collected


def cure_when_imported() -> None:
    """Call ``cure`` when somebody looks for torchvision, so that nobody pays for torch before it is needed."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _Before())


class _Before(importlib.abc.MetaPathFinder):
    """Finds nothing; notices that torchvision is looked for, once."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)  # first of all: the cure looks for torchvision, too
            cure()


def cure() -> bool:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` if torchvision could not; True if it did."""
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None or "torchvision" in sys.modules or _kept:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    native = sorted(Path(spec.origin).parent.glob("_C*.so"))
    if not native or _loads(native[0]):
        return False
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    return True


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True
