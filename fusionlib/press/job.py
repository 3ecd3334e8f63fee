"""One job: run one chapter with papermill, and put its executed copy and its status in place.

Runs in a process of its own: forked by the zygote, or started as ``python -m fusionlib.press.job`` with its
order on stdin, which doubles as the watchdog: when it closes, the runner is gone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fusionlib.press.files import write_text
from fusionlib.press.project import failed_copy, outcome_of, status_file

Send = Callable[[dict[str, Any]], None]

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TAIL = 12  # lines of a traceback that are shown
_WIDTH = 300  # characters of a line that are shown; an event must fit into one message
_MESSAGE = 2000  # of an error's message, which says what to do at its end


class Job:
    """What one process is doing: its order, its scratch folder and its kernel.

    Args:
        order: ``id``, ``notebook``, ``executed`` (absolute paths), ``root``, ``parameters``, and ``status`` (what
            the status file says beside seconds and outcome).
        send: takes events: ``cell`` while running, ``finished`` at the end.
        fork: whether the kernel is to be forked from this process.
    """

    def __init__(self, order: dict[str, Any], send: Send, *, fork: bool):
        self._order = order
        self._send = send
        self._scratch = Path(tempfile.mkdtemp(prefix="fusionlib-"))
        self._first_cell: float | None = None
        self._begun = time.monotonic()
        self._manager: Any = None
        self._forked: Any = None
        if hasattr(signal, "SIGTERM"):
            signal.signal(signal.SIGTERM, lambda *_: self.abandon())
        if fork:
            from fusionlib.press.engine import ForkedKernel

            self._forked = ForkedKernel()  # first of all: papermill will start threads

    def abandon(self) -> NoReturn:
        """End this process and its kernel now, leaving nothing behind."""
        pid = self._kernel_pid()
        if pid is not None:
            from fusionlib.press.engine import kill_group

            kill_group(pid)
        shutil.rmtree(self._scratch, ignore_errors=True)
        os._exit(143)

    def _kernel_pid(self) -> int | None:
        """The kernel's process while it runs."""
        process = self._forked or getattr(getattr(self._manager, "provisioner", None), "process", None)
        return process.pid if process is not None and process.poll() is None else None

    def run(self) -> None:
        """Execute the chapter and report; never raises."""
        executed = Path(self._order["executed"])
        partial = self._scratch / "notebook.ipynb"
        try:
            failure = self._execute(partial)
            self._put_in_place(partial, executed, failure)
        except OSError as error:
            failure = {"error": "OSError", "message": f"{executed.parent} cannot be written: {error}"}
        except Exception as error:  # whatever happens in one job, the others go on and it is told
            failure = {"error": type(error).__name__, "message": str(error)[-2000:]}
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._send(
            {
                "event": "finished",
                "failure": failure,
                "seconds": time.monotonic() - self._begun,
                "first_cell": self._first_cell,
            }
        )

    def _execute(self, partial: Path) -> dict[str, Any] | None:
        from papermill.exceptions import PapermillExecutionError
        from papermill.execute import execute_notebook

        from fusionlib.press.engine import NAME

        order = self._order
        total = _count_cells(Path(order["notebook"])) + bool(order["parameters"])

        def on_cell(index: int, seconds: float) -> None:
            if self._first_cell is None:
                self._first_cell = seconds
            self._cell = index
            self._send({"event": "cell", "cell": index + 1, "of": total})

        self._cell = -1
        try:
            execute_notebook(
                order["notebook"],
                str(partial),
                parameters=order["parameters"],
                engine_name=NAME,
                kernel_name="python3",
                progress_bar=False,
                cwd=order["root"],
                autosave_cell_every=0,
                scratch=self._scratch,
                forked=self._forked,
                on_manager=lambda manager: setattr(self, "_manager", manager),
                on_cell=on_cell,
            )
        except PapermillExecutionError as error:
            return _cell_failure(error)
        except Exception as error:
            from nbclient.exceptions import DeadKernelError

            if not isinstance(error, DeadKernelError):
                raise
            code = self._forked.poll() if self._forked is not None else None
            how = f" (ended by signal {-code}; 9 often means: out of memory)" if code and code < 0 else ""
            return {"cell": self._cell + 1, "error": "DeadKernelError", "message": f"the kernel died{how}"}
        return None

    def _put_in_place(self, partial: Path, executed: Path, failure: dict[str, Any] | None) -> None:
        """The status, and with "done" the executed copy, with "failed" the partial one, with "skipped" neither."""
        seconds = round(time.monotonic() - self._begun, 2)
        kind = outcome_of(failure)
        copies = {"done": executed, "failed": failed_copy(executed)}
        if kind in copies and partial.exists():
            write_text(copies[kind], self._without_paths(partial))
        outcome = {"status": kind, "seconds": seconds, "failure": failure}
        status = {**self._order["status"], **outcome, "first_cell_seconds": self._first_cell}
        write_text(status_file(executed), json.dumps(status, indent=1))
        for other in copies.keys() - {kind}:
            copies[other].unlink(missing_ok=True)

    def _without_paths(self, partial: Path) -> str:
        """The notebook's text with paths of this machine taken out of papermill's metadata."""
        notebook = json.loads(partial.read_text(encoding="utf-8"))
        about = notebook["metadata"].get("papermill", {})
        about["input_path"] = Path(self._order["notebook"]).relative_to(self._order["root"]).as_posix()
        about["output_path"] = Path(self._order["executed"]).name
        return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cell_failure(error: Any) -> dict[str, Any]:
    *lines, last = _ANSI.sub("", "\n".join(error.traceback)).splitlines()[-_TAIL:] or [""]
    return {
        "cell": error.exec_count,
        "source": [line[:_WIDTH] for line in error.source.strip().splitlines()[:3]],
        "error": error.ename,
        "message": _ANSI.sub("", error.evalue)[-_MESSAGE:],
        "traceback": [*(line[:_WIDTH] for line in lines), last[:_MESSAGE]],
    }


def _count_cells(notebook: Path) -> int:
    return len(json.loads(notebook.read_text(encoding="utf-8"))["cells"])


def main() -> None:
    """Run the order on stdin with an ordinary kernel; events go to stdout as JSON lines."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed must not be taken for an event
    order = json.loads(sys.stdin.readline())

    def send(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    job = Job(order, send, fork=False)

    def watch() -> None:
        sys.stdin.read()
        if os.name == "nt":
            job.abandon()
        os.kill(os.getpid(), signal.SIGTERM)  # handled by the main thread, which else would go on writing meanwhile

    threading.Thread(target=watch, daemon=True).start()
    job.run()
    events.close()
    os._exit(0)  # the watching thread may hold stdin


if __name__ == "__main__":
    main()
