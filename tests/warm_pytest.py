"""Runs pytest, and the kernel that nbval asks it for, in processes forked from one that has everything imported.

To import torch and transformers takes longer than most chapters do. An order is a line of JSON on stdin:
``{"id", "arguments", "environment", "folder"}``; its answer on stdout, once that pytest has ended, is
``{"id", "status"}``. What it printed is in ``output.txt`` of its folder.
"""

import json
import os
import select
import sys
from typing import Any, NoReturn

import pytest
from jupyter_client.provisioning import KernelProvisionerFactory

from fusionlib.press.engine import ForkedKernel, ForkProvisioner
from fusionlib.press.process import die_with_parent, fork_refusal_here
from fusionlib.press.zygote import preload

OUTPUT = "output.txt"


def main() -> None:
    """Serve until stdin closes."""
    preload()
    refusal = fork_refusal_here()
    if refusal is not None:
        sys.exit(f"warm_pytest: {refusal}")
    pending, running = b"", {}
    while True:
        if select.select([0], [], [], 0.1)[0]:
            received = os.read(0, 1 << 16)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            for order in map(json.loads, lines):
                running[_fork(order)] = order["id"]
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                print(json.dumps({"id": running.pop(pid), "status": os.waitstatus_to_exitcode(status)}), flush=True)


def _fork(order: dict[str, Any]) -> int:
    parent = os.getpid()
    return os.fork() or _run(order, parent)


def _run(order: dict[str, Any], parent: int) -> NoReturn:
    status = 1
    try:
        die_with_parent(parent)
        os.chdir(order["folder"])
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(stream, target)
        os.environ.clear()
        os.environ.update(order["environment"])
        kernel = ForkedKernel()  # while there is one thread

        def provisioner(factory: Any, kernel_id: str, kernel_spec: Any, parent: Any) -> ForkProvisioner:
            return ForkProvisioner(kernel, kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent)

        KernelProvisionerFactory.create_provisioner_instance = provisioner
        status = int(pytest.main(order["arguments"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
