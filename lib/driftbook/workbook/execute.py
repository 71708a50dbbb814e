"""One notebook, executed by papermill in a process of its own. The runner starts it; nobody else should.

A process of its own, because papermill changes the working folder of the process that calls it, and so that a kernel
that dies takes nothing else along. What happens is written to a journal as it happens, for papermill's notebook does
not tell a cell that was killed or timed out from one that completed. Standard input is a pipe that the runner holds
open: when the runner is gone, even by ``kill -9``, the pipe ends, and so does this process and its kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from driftbook.workbook.slim import skip_iri_grammar

skip_iri_grammar()

import nbformat  # noqa: E402
import papermill  # noqa: E402
import yaml  # noqa: E402
from ipykernel.kernelspec import make_ipkernel_cmd  # noqa: E402
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402
from nbclient.exceptions import CellControlSignal, CellTimeoutError, DeadKernelError  # noqa: E402
from papermill.clientwrap import PapermillNotebookClient  # noqa: E402
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402
from papermill.execute import remove_error_markers  # noqa: E402

JOURNAL = "journal.jsonl"
SECONDS_TO_START = 120
AUTOSAVE_SECONDS = 20


class Journal:
    """Events, one JSON line each, with seconds since the start."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()
        self.failed = False

    def write(self, event: str, **facts: Any) -> None:
        self.failed = self.failed or event == "failed"
        line = json.dumps({"event": event, "at": round(time.monotonic() - self.started, 3), **facts})
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


class OwnPython(KernelSpecManager):
    """``python3`` is the interpreter that runs this, whatever kernel a user has registered under that name."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        if kernel_name == "python3":
            argv = make_ipkernel_cmd(executable=sys.executable)
            return KernelSpec(argv=argv, display_name="Python 3", language="python")
        return super().get_kernel_spec(kernel_name)


class IpcKernelManager(AsyncKernelManager):
    """Kernels on Unix sockets: parallel kernels on TCP ports can pick the same port."""

    def __init__(self, **kwargs: Any) -> None:
        connection = os.path.join(os.environ["IPYTHONDIR"], "kernel.json")
        super().__init__(
            transport="ipc",
            connection_file=connection,
            kernel_spec_manager=OwnPython(parent=kwargs.get("parent")),
            **kwargs,
        )

    async def _async_interrupt_kernel(self) -> None:
        """For a kernel at work: one that has finished and is told to end would print the interrupt as an error."""
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


class JournalClient(PapermillNotebookClient):
    """papermill's client, which says in the journal when a cell starts, is done, or fails, and of what."""

    journal: Journal
    kernel: list[Any]

    def start_new_kernel(self, **kwargs: Any) -> None:
        super().start_new_kernel(**kwargs)
        self.kernel.append(self.km)
        self.journal.write("kernel", pid=self.km.provisioner.pid)

    def execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        if cell.cell_type != "code" or not cell.source.strip():
            return super().execute_cell(cell, cell_index, *args, **kwargs)
        self.journal.write("start", cell=cell_index)
        process = self.km.provisioner.process
        try:
            result = super().execute_cell(cell, cell_index, *args, **kwargs)
        except BaseException as error:
            shown = [f"{o.ename}: {o.evalue}, while showing a result" for o in cell.outputs if o.output_type == "error"]
            undrawn = getattr(error, "ename", "") == "NoneType"  # the code ran; IPython could not show its result
            reason = shown[-1] if undrawn and shown else _reason(error, process, self.timeout)
            self.journal.write("failed", cell=cell_index, reason=reason)
            raise
        self.journal.write("done", cell=cell_index)
        return result


def _reason(error: BaseException, process: Any, timeout: float | None) -> str:
    if isinstance(error, DeadKernelError):
        with contextlib.suppress(Exception):
            process.wait(timeout=5)
        code = getattr(process, "returncode", None)
        if code is None or code >= 0:
            return f"the kernel died (exit code {code})"
        name = signal.Signals(-code).name
        hint = ": often the machine ran out of memory" if -code == signal.SIGKILL else ""
        return f"the kernel was killed by {name}{hint}"
    if isinstance(error, CellTimeoutError):
        return f"the cell took longer than the {timeout:g} s allowed for one cell"
    if getattr(error, "ename", None) == "SystemExit":
        return f"the cell left the notebook by sys.exit({error.evalue})"
    if getattr(error, "ename", None):  # nbclient's CellExecutionError
        return f"{error.ename}: {error.evalue}".rstrip(": ")
    if isinstance(error, CellControlSignal):
        return str(error).strip().splitlines()[-1]
    return f"{type(error).__name__}: {error}"


class RunNotebook(NotebookExecutionManager):
    """Saves the notebook every twenty seconds and at the end, not at every cell: a save writes every output again."""

    def save(self, **kwargs: Any) -> None:
        if self.end_time is not None or (self.now() - self.last_save_time).total_seconds() >= AUTOSAVE_SECONDS:
            super().save(**kwargs)


class RunEngine(NBClientEngine):
    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        *,
        journal: Journal,
        kernel: list[Any],
        save_to: Path,
        timeout: float | None,
        **_: Any,
    ) -> Any:
        manager = RunNotebook(nb, output_path=str(save_to), progress_bar=False, autosave_cell_every=AUTOSAVE_SECONDS)
        manager.notebook_start()
        client = JournalClient(
            manager,
            timeout=timeout,
            startup_timeout=SECONDS_TO_START,
            kernel_name=kernel_name,
            kernel_manager_class=IpcKernelManager,
            # Progress lines and the output of C code go to the log of the run, not into the notebook.
            extra_arguments=["--IPKernelApp.capture_fd_output=False"],
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
        client.journal, client.kernel = journal, kernel
        try:
            client.execute()
        finally:
            manager.notebook_complete()
        return manager.nb


def _end_with_the_runner(kernel: list[Any], scratch: str) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    for km in kernel:
        with contextlib.suppress(Exception):
            os.kill(km.provisioner.pid, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(3)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("notebook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kernel", default="python3")
    parser.add_argument("--timeout", type=float)
    args = parser.parse_args()

    # The name is short because it is part of the kernel's sockets, whose paths may have about 100 characters. An
    # IPython folder of its own keeps a user's startup files and history out of the run.
    with tempfile.TemporaryDirectory(prefix="driftbook-") as scratch:
        os.environ["IPYTHONDIR"] = scratch
        return _execute(args, scratch)


def _execute(args: argparse.Namespace, scratch: str) -> int:
    journal, kernel = Journal(args.folder / JOURNAL), []
    threading.Thread(target=_end_with_the_runner, args=(kernel, scratch), daemon=True).start()
    papermill_engines.register("driftbook", RunEngine)
    # It reads the defaults of the notebook's parameters line by line and takes "#" inside a string for a comment.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    executed = args.folder / "notebook.ipynb"
    code = 0
    try:
        papermill.execute_notebook(
            args.notebook,
            executed,
            parameters=yaml.safe_load((args.folder / "params.yml").read_text(encoding="utf-8")),
            engine_name="driftbook",
            kernel_name=args.kernel,
            language="python",
            request_save_on_cell_execute=False,
            journal=journal,
            kernel=kernel,
            save_to=executed,
            timeout=args.timeout,
        )
    except PapermillExecutionError as error:
        if not journal.failed:  # the cell itself was done, but what it shows could not be drawn
            reason = f"{error.ename}: {error.evalue}, while showing a result"
            journal.write("failed", cell=error.cell_index, reason=reason)
        # The report has a banner of its own; cells that papermill inserts would shift the number of the failed one.
        notebook = remove_error_markers(nbformat.read(executed, as_version=4))
        nbformat.write(notebook, executed)
        code = 1
    except Exception as error:
        journal.write("error", reason=f"{type(error).__name__}: {error}")
        code = 1
    kilo = 1 if sys.platform == "darwin" else 1024
    # Of children that have ended: the kernel, and whatever it started and waited for.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilo / 1e6
    journal.write("end", code=code, peak_rss_mb=round(peak, 1))
    return code


if __name__ == "__main__":
    sys.exit(main())
