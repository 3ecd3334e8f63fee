"""A papermill engine whose kernel comes from a forked process, and the kernel provisioner that hands it over.

The process that becomes the kernel is forked early, while the job that will drive it has a single thread; it
waits for its orders on a pipe. Without such a process the engine starts the kernel in the ordinary way.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

from fusionlib.press.process import die_with_parent

NAME = "fusionlib"


class ForkedKernel:
    """A child process that waits to become a kernel; looks like a ``subprocess.Popen`` to jupyter_client."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        """Fork. Must be called while this process has one thread."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _become_kernel(theirs, parent)
        theirs.close()
        self._orders = ours

    def launch(self, arguments: list[str], env: dict[str, str], cwd: str) -> None:
        """Let it start as a kernel with these arguments of ``ipykernel_launcher``."""
        self._orders.sendall(json.dumps({"arguments": arguments, "env": env, "cwd": cwd}).encode())
        self._orders.close()

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait for its end; the exit status."""
        return self._reap(0)

    def send_signal(self, signum: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class ForkProvisioner(LocalProvisioner):
    """Launches the kernel in a :class:`ForkedKernel` instead of a new interpreter."""

    def __init__(self, kernel: ForkedKernel, **kwargs: Any):
        super().__init__(**kwargs)
        self._kernel = kernel

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launch; of the command only the arguments after the connection file's ``-f`` matter."""
        cwd = str(kwargs.get("cwd") or Path.cwd())
        parent = f"--IPKernelApp.parent_handle={os.getpid()}"
        self._kernel.launch([*cmd[cmd.index("-f") :], parent], dict(kwargs["env"]), cwd)
        self.process = self._kernel  # type: ignore[assignment]
        self.pid = self.pgid = self._kernel.pid
        self.cwd = cwd
        return self.connection_info


class FusionEngine(NBClientEngine):
    """papermill's engine with a kernel of our choice; registered under ``NAME``."""

    @classmethod
    def execute_managed_notebook(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        scratch: Path,
        forked: ForkedKernel | None = None,
        on_manager: Callable[[AsyncKernelManager], None] = lambda manager: None,
        on_cell: Callable[[int, float], None] = lambda index, seconds: None,
        **kwargs: Any,
    ) -> Any:
        """Run the cells.

        Args:
            nb_man: papermill's wrapper around the notebook.
            kernel_name: name of the kernel's specification.
            scratch: a folder with a short path, for the connection file and sockets.
            forked: the process to use as the kernel; None starts an ordinary one.
            on_manager: called with the kernel's manager before the kernel starts.
            on_cell: called before each cell with its index and the seconds since this call.
        """
        begun = time.monotonic()
        manager = make_manager(kernel_name, scratch, forked)
        on_manager(manager)
        client = PapermillNotebookClient(
            nb_man, km=manager, timeout=None, startup_timeout=120, store_widget_state=False
        )
        client.on_cell_start = lambda cell, cell_index: on_cell(cell_index, time.monotonic() - begun)
        return client.execute(cleanup_kc=True)


def make_manager(kernel_name: str, scratch: Path, forked: ForkedKernel | None) -> AsyncKernelManager:
    """A kernel manager; it talks over sockets in ``scratch`` where there are such, so no two kernels share a port."""
    manager = AsyncKernelManager(kernel_name=kernel_name, connection_file=str(scratch / "kernel.json"))
    if sys.platform != "win32":
        manager.transport, manager.ip = "ipc", str(scratch / "kernel")
    if forked is not None:
        manager.provisioner = ForkProvisioner(forked, kernel_spec=manager.kernel_spec, parent=manager)
    return manager


def kill_group(pid: int) -> None:
    """Kill a kernel with all the processes it has started, at once."""
    if hasattr(os, "killpg"):
        for kill in (os.killpg, os.kill):
            # it may not be the leader of a group yet, or may just have ended
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
    else:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)  # on Windows this ends the process at once


def _become_kernel(orders: socket.socket, parent: int) -> NoReturn:
    """In the forked child: wait for the orders, then be a kernel until told to end."""
    status = 1
    try:
        os.setsid()
        die_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        received = b"".join(iter(lambda: orders.recv(1 << 16), b""))
        if received:
            _run_kernel(json.loads(received))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        # leaving through the caller's frames would run the job's code in the kernel's process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_kernel(orders: dict[str, Any]) -> None:
    import numpy as np
    import torch
    from ipykernel.kernelapp import IPKernelApp

    os.environ.clear()
    os.environ.update(orders["env"])
    os.chdir(orders["cwd"])
    np.random.seed(None)  # else all kernels would draw the same numbers
    torch.default_generator.seed()
    torch.set_num_threads(1)
    if not os.environ.get("PYTHONSAFEPATH"):
        _add_working_folder(sys.path)
    sys.argv = ["ipykernel_launcher", *orders["arguments"]]
    try:
        IPKernelApp.launch_instance(argv=orders["arguments"])
    finally:
        atexit._run_exitfuncs()


def _add_working_folder(path: list[str]) -> None:
    """Let notebooks import what lies beside them, as IPython does, but not in a process started with ``-P``."""
    packages = [index for index, folder in enumerate(path) if Path(folder).name in ("site-packages", "dist-packages")]
    path.insert(packages[0] if packages else 0, "")


papermill_engines.register(NAME, FusionEngine)
