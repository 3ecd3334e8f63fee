"""``$FUSIONLIB_HOME`` as one folder for the whole run, whatever folder a program or a notebook changes to."""

from __future__ import annotations

import os
from contextlib import suppress

NAME = "FUSIONLIB_HOME"


def settle() -> None:
    """Write a relative ``$FUSIONLIB_HOME`` back as an absolute path, which processes started from here inherit."""
    named = os.environ.get(NAME)
    if named and not named.startswith("~") and not os.path.isabs(named):
        with suppress(OSError):  # the current folder may have been deleted; whoever needs the home says so
            os.environ[NAME] = os.path.abspath(named)
