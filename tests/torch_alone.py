"""Runs pieces of code in processes that have torch, numpy and the standard library, and nothing else to import.

``python torch_alone.py`` reads a JSON object, name to code, from stdin and writes name to error text ("" if it ran)
to stdout. Each piece has a process of its own, forked from one that has torch imported.
"""

import json
import os
import sys
import traceback

ALLOWED = sys.stdlib_module_names | {"torch", "numpy"}


class Guard:
    """Refuses to find any other module."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ALLOWED:
            raise ImportError(f"{name} is imported, but the cell promises torch alone")


def run(code: str) -> str:
    """The error of one piece of code, run in a child process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        error = ""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            exec(compile(code, "<cell>", "exec"), {"__name__": "__main__"})
        except BaseException:
            error = traceback.format_exc()
        os.write(writing, error.encode()[-60_000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as answer:
        error = answer.read()
    _, status = os.waitpid(pid, 0)
    return error or ("" if status == 0 else f"the process ended with status {status}")


if __name__ == "__main__":
    import torch
    import torch._dynamo  # noqa: F401  - at its first use an optimizer imports it, and others that come with torch

    sys.meta_path.insert(0, Guard())
    json.dump({name: run(code) for name, code in json.load(sys.stdin).items()}, sys.stdout)
