"""A llama.cpp that has opened a GGUF file, and what it makes of messages, text and tokens.

In: a file. Out: prompts, token ids, answers. The engine is `serve` beside this, in a process of its own that ends with
the `with` block or with this process.
"""

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from model_tools.llama_cpp import programs
from sft.core.errors import UserError
from sft.core.paths import REPOSITORY
from sft.core.text import one_line_message

SECONDS = 3600  # for the answer of a large model on a CPU
FORCED = 10_000  # added to a logit, leaves no other token a chance


class Engine:
    """llama.cpp over HTTP, at an address of this machine and with a key that nobody else has."""

    def __init__(self, address: str, key: str):
        headers = {"Authorization": f"Bearer {key}"}
        # A proxy of the environment must see neither the key nor the questions.
        self._client = httpx.Client(base_url=address, headers=headers, timeout=SECONDS, trust_env=False)

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """The text that it makes of messages, without a first token that it adds when it reads the text."""
        return str(self._post("/apply-template", messages=messages)["prompt"])

    def tokens(self, text: str, *, is_prompt: bool = False) -> list[int]:
        """The ids of a text, control tokens in it as such; of a prompt with what it adds to every prompt."""
        return list(self._post("/tokenize", content=text, add_special=is_prompt, parse_special=True)["tokens"])

    def stops_at(self, token: int) -> bool:
        """Whether an answer ends where the model says this token."""
        said = self._post("/completion", prompt=[token], n_predict=2, temperature=0, logit_bias=[[token, FORCED]])
        return said["stop_type"] == "eos"

    def answer(self, messages: list[dict[str, str]], most: int) -> str:
        """What the model says, greedily, in at most so many tokens."""
        said = self._post("/v1/chat/completions", messages=messages, max_tokens=most, temperature=0, repeat_penalty=1)
        return str(said["choices"][0]["message"]["content"] or "")

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        try:
            answer = self._client.post(path, json=body)
        except httpx.TransportError as problem:
            raise UserError(f"llama.cpp does not answer any more: {one_line_message(problem, 200)}") from None
        if answer.is_error:
            raise UserError(f"llama.cpp refuses what it is asked: {programs.last_line(answer.text)}")
        return dict(answer.json())


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """Let llama.cpp open a GGUF file.

    Raises:
        UserError: it cannot.
    """
    key = secrets.token_urlsafe()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "model_tools.llama_cpp.serve", str(path.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=REPOSITORY,
            text=True,
            preexec_fn=programs.die_with_parent,
        )
        try:
            assert process.stdin is not None, "it is a pipe"
            assert process.stdout is not None, "it is a pipe"
            process.stdin.write(key + "\n")
            process.stdin.flush()
            address = process.stdout.readline().strip()
            if not address:
                process.wait()
                log.seek(0)
                raise UserError(f"{path}: llama.cpp cannot open it: {_reason(log.read())}")
            yield Engine(address, key)
        finally:
            process.kill()
            process.communicate()


def _reason(log: str) -> str:
    """The first error in llama.cpp's log, whose lines are a time, a letter for the level and a text."""
    errors = [line for line in log.splitlines() if line.split(" ", 2)[1:2] == ["E"]]
    return programs.last_line(errors[0].split(" E ", 1)[1] if errors else log)
