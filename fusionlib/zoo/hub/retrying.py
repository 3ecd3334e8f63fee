"""Asking the hub again after a failure that may pass: a sentence and a pause before every further attempt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
_PASSING = (408, 429, 500, 502, 503, 504)


def patiently(call: Callable[[], T], what: str) -> T:
    """The result of ``call``, tried again after server errors, timeouts and broken connections.

    Args:
        call: asks the hub; it must be safe to call again. A download goes on where it was broken off.
        what: named in the sentences, which go to standard error.

    Raises: whatever ``call`` raises at the last attempt, or at once where no further attempt can help; a connection
        that fails is a ConnectionError, whichever library the hub's client uses for it.
    """
    for attempt, pause in enumerate(PAUSES, start=2):
        try:
            return call()
        except Exception as error:
            reason = _passing(error)
            if reason is None:
                raise
        print(f"{what}: {reason}; attempt {attempt} of {len(PAUSES) + 1} in {pause:g} s.", file=sys.stderr)
        time.sleep(pause)
    try:
        return call()
    except Exception as error:
        if _is_transport(error) and not isinstance(error, OSError):
            raise ConnectionError(f"{what}: the connection failed ({type(error).__name__}: {error})") from error
        raise


def reason_of(error: BaseException) -> str:
    """The line of an error of the hub's client that says most: what was not found rather than "404 Client Error"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if " Error." not in line), lines[0])


def _passing(error: BaseException) -> str | None:
    """Why a further attempt may succeed, None if it will not."""
    from huggingface_hub.errors import HfHubHTTPError

    for each in _chain(error):
        if isinstance(each, HfHubHTTPError):
            status = each.response.status_code
            return f"the hub answered {status}" if status in _PASSING else None
        if _is_transport(each):
            return f"the connection failed ({type(each).__name__})"
        if isinstance(each, OSError) and "Consistency check failed" in str(each):
            return "a file came incomplete"
    return None


def _is_transport(error: BaseException) -> bool:
    """Whether a connection failed; known by name, as the hub's client has changed the library under it before."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
