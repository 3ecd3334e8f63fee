"""Text of users inside Markdown and HTML: shown as it was written, never read as markup."""

from __future__ import annotations

import html
import re

# what Markdown may read as markup in a line of text; an underscore inside a word is none
_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")
_START = re.compile(r"^(\s*)(\d*)([-+=#.)(:])")


def escaped(text: object) -> str:
    """One line of Markdown that shows exactly this text, in tables too; line breaks become blanks, HTML is shown."""
    line = html.escape(_CONTROL.sub(" ", str(text)), quote=False)
    return _START.sub(r"\1\2\\\3", _MARKUP.sub(r"\\\1", line))


def code(text: object) -> str:
    """A span of code in one line of Markdown that shows exactly this text: nothing in it ends the span."""
    line = _CONTROL.sub(" ", str(text))
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    pad = " " if line[:1] == "`" or line[-1:] == "`" or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"
