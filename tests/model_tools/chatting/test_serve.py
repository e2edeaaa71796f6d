"""Serving: a chat model folder behind `transformers serve`, the stack's own OpenAI-compatible server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from model_tools.chatting.conversation import load_named_model
from model_tools.checkpoints.model_folder import resolve_model
from sft.evaluation.chat_eval import ask
from tests.support.taught_models import AFTER, BEFORE, write_pair


@pytest.fixture
def served(tiny_model, tmp_path):
    """A model folder and the address it is served at, offline, by the command the README gives."""
    folder, _ = write_pair(tiny_model, tmp_path, BEFORE, AFTER)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        Path(sys.executable).parent / "transformers",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = tmp_path / "serve.log"
    with open(log, "wb") as file:
        server = subprocess.Popen(
            command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        while not _answers(address):
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        yield folder, address
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address + "/health")
    except urllib.error.URLError:
        return False
    return True


@pytest.mark.long
def test_transformers_serve_gives_the_answer_that_ask_gives(served):
    folder, address = served
    model, tokenizer = load_named_model(resolve_model(folder))
    generation = {"do_sample": False, "max_new_tokens": 60}
    for system in (None, "x"):
        expected = ask(model, tokenizer, ["你是谁？"], system=system, generation=generation)[0]
        messages = [{"role": "system", "content": system}] if system else []
        body = {"messages": [*messages, {"role": "user", "content": "你是谁？"}], "temperature": 0, "max_tokens": 60}
        request = urllib.request.Request(
            address + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            (choice,) = json.load(response)["choices"]
        assert choice["message"]["content"].strip() == expected.answer
        assert choice["finish_reason"] == ("stop" if expected.stop_reason == "end of turn" else "length")
