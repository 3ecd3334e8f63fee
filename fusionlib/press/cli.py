"""Entry point of the command ``fusionlib``: imports little, and shows errors as one line."""

from __future__ import annotations

import signal
import sys

from fusionlib.press.interrupts import INTERRUPTED, ignore, listen

_EXTRA = 'Error: the command line needs the book extra. Install it with: pip install "fusionlib[book]"'


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. An error raised on purpose is one line and exit code 2.

    Args:
        arguments: without the program's name. By default those of the process, which is then taken for the command:
            it also decides what Ctrl-C does, from here on, before anything heavy is imported, to the very end.
    """
    if arguments is not None:
        return _run(arguments)
    listen(signal.SIGINT)
    try:
        return _run(sys.argv[1:])
    except KeyboardInterrupt:  # between the lines of _run
        return _interrupted()
    finally:
        ignore(signal.SIGINT)  # nothing is left to end but the process itself


def _run(arguments: list[str]) -> int:
    try:
        from fusionlib.press.commands import group
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("click", "rich"):
            raise
        print(f"{_EXTRA}  (missing: {error.name})", file=sys.stderr)
        return 2
    traceback = "--traceback" in arguments
    try:
        return group.main([a for a in arguments if a != "--traceback"], "fusionlib", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        return _report(error, traceback)


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED


def _report(error: Exception, traceback: bool) -> int:
    import click

    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort):
        return _interrupted()
    if isinstance(error, ModuleNotFoundError) and not traceback and not (error.name or "").startswith("fusionlib"):
        print(f"{_EXTRA}  (missing: {error.name})", file=sys.stderr)
        return 2
    from fusionlib.core import FusionError

    if traceback or not isinstance(error, FusionError):
        raise error
    print(f"Error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
