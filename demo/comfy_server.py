"""A real ComfyUI server for the demo: its own port, its own folders, and stopped again whatever happens."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
STOP_SECONDS = 10.0
OLDER = 0.2  # seconds between the links to the models and the server: the encode cache learns nothing of younger links
PR_SET_PDEATHSIG = 1
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class DemoError(Exception):
    """Something that the person at the keyboard can read and act upon."""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    folder: Path  # its input, output, user and models

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def log_tail(self, lines: int = 30) -> str:
        text = COLOUR.sub("", self.log.read_bytes().decode("utf-8", errors="replace"))
        # a progress bar is many states of one line: its last is enough
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")[-lines:])


@contextmanager
def running(
    comfyui: Path,
    custom_nodes: dict[str, Path],
    models: dict[str, list[Path]],
    threads: int,
    log: Path,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """A starting server, with these custom nodes (name: folder) and models (kind: files) and no others. options: more of ComfyUI's.

    The environment's FRONTEND_ROOT, if set, is the folder of the front end to show instead of ComfyUI's own.
    Everything it writes lands in a temporary folder that goes with it; only the log stays.
    """
    with tempfile.TemporaryDirectory(prefix="skipstone-demo-") as folder, log.open("wb") as output:
        base = Path(folder)
        _furnish(base, custom_nodes, models)
        time.sleep(OLDER)
        port = _free_port()
        command = [
            sys.executable, str(comfyui / "main.py"),
            "--cpu", "--listen", HOST, "--port", str(port),
            "--base-directory", str(base), "--database-url", "sqlite:///:memory:",
            "--disable-auto-launch", "--disable-api-nodes",
            *_front_end(),
            # another pack that extra_model_paths.yaml may point to has no say in our figures
            *options, "--disable-all-custom-nodes", "--whitelist-custom-nodes", *custom_nodes,
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            cwd=base,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        try:
            yield Server(process, port, log, base)
        finally:
            _stop(process)


def _front_end() -> list[str]:
    """The option for another front end than ComfyUI's own, where FRONTEND_ROOT names its files (tools/setup.py)."""
    root = os.environ.get("FRONTEND_ROOT")
    return ["--front-end-root", root] if root else []


def _furnish(base: Path, custom_nodes: dict[str, Path], models: dict[str, list[Path]]) -> None:
    for name in ("input", "output", "temp", "user"):
        (base / name).mkdir()
    for name, source in custom_nodes.items():
        _link(source, base / "custom_nodes" / name)
    for kind, files in models.items():
        for file in files:
            _link(file, base / "models" / kind / file.name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Runs in the child: have the kernel end it should the demo be killed without a chance to clean up."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
