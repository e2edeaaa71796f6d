"""`transformers serve`, the stack's own OpenAI-compatible server, in a process that knows this repository not."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(folder: Path | str, log: Path, *options: str) -> Iterator[str]:
    """The address that a model folder is served at, offline, by the command the documents give."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    program = Path(sys.executable).parent / "transformers"
    command = [program, "serve", folder, "--host", "127.0.0.1", "--port", str(port), *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with open(log, "wb") as file:
        server = subprocess.Popen(
            command, cwd=log.parent, env=environment | {"HF_HUB_OFFLINE": "1"}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        while not _answers(address):
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address + "/health")
    except urllib.error.URLError:
        return False
    return True
