"""The log in which the library says what it read instead of measuring it."""

from __future__ import annotations

import logging
import sys
from typing import Any


class _Stderr(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is now: a notebook replaces it."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


logger = logging.getLogger("fusionlib")
if not logger.handlers:
    logger.addHandler(_Stderr())
    logger.setLevel(logging.INFO)
