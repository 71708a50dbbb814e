"""``transformers serve`` on a model folder: a real server of the OpenAI chat API here, for tests and benches.

It takes two things from the folder's ``generation_config.json`` that no request can say: whether it samples at all
(``do_sample``; otherwise it is greedy at any temperature), and ``top_k`` (50 where the file is silent).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from driftbook.errors import DriftbookError


@dataclass(frozen=True)
class Server:
    """Where it listens (``http://127.0.0.1:PORT/v1``), and the one model name that it answers to."""

    base_url: str
    model: str


@contextlib.contextmanager
def transformers_server(model: Path, log: Path, start_s: float = 180.0) -> Iterator[Server]:
    """Serve a model folder on loopback, on the CPU, until the block ends. What the server says is written to ``log``.

    Raises:
        DriftbookError: it ended, or did not answer within ``start_s`` seconds; with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    with log.open("wb") as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(server, port, log, time.monotonic() + start_s)
            yield Server(f"http://127.0.0.1:{port}/v1", str(model))
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def served_copy(model: Path, folder: Path) -> Path:
    """The model folder once more, with a ``generation_config.json`` under which a server samples as it is asked to: no
    greedy decoding at a temperature, no top-k of its own. Weights are linked where the disk allows it."""
    shutil.copytree(model, folder, copy_function=_link, dirs_exist_ok=True)
    path = folder / "generation_config.json"
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.unlink(missing_ok=True)  # it may be a link to the model's own
    path.write_text(json.dumps({**held, "do_sample": True, "top_k": 0}, indent=1))
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:
        shutil.copy2(source, target)


def _wait(server: subprocess.Popen, port: int, log: Path, until: float) -> None:
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise DriftbookError(f"transformers serve did not start; it said:\n{log.read_text(errors='replace')[-2000:]}")
