"""An S3-compatible store for tests: moto's server, in a process of its own (tools/setup.py says where it is)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", reason='boto3 is missing: pip install "boto3>=1.36"')
MOTO = os.environ.get("S3_SERVER", "")
needs_moto = pytest.mark.skipif(not MOTO, reason="moto's server is missing: run the tests with tools/setup.py")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


class S3Store:
    """A store of our own on a free port of this machine. `url`: its endpoint."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "s3.log"
        session = boto3.session.Session("test", "test", region_name="us-east-1")
        self._client = session.client("s3", endpoint_url=self.url)  # one for all tests: making one takes 0.1 s
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": MOTO}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        for _ in range(1000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"moto's server does not start:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        return self._client

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name
