"""Serving: merged folders behind `transformers serve`, asked by OpenAI's own client as any program would."""

import shutil

import openai
import pytest

from model_tools.__main__ import main
from model_tools.chatting.conversation import load_named_model
from model_tools.checkpoints.model_folder import resolve_model
from sft.evaluation.chat_eval import ask
from tests.support.published_internlm2 import tiny_internlm2
from tests.support.serving import serving
from tests.support.taught_models import AFTER, BEFORE, GREEDY, write_pair

SYSTEMS = (None, "x")
QUESTION, TOKENS = "你是谁？", 60


@pytest.fixture(params=["llama", "internlm2"])
def merged(request, tiny_model, tmp_path):
    """A base, an adapter that was taught an answer, and the folder that `merge` makes of them."""
    untaught = tiny_model if request.param == "llama" else tiny_internlm2(tmp_path / "untaught")
    base, adapter = write_pair(untaught, tmp_path, BEFORE, AFTER)
    if request.param == "internlm2":
        shutil.copy(untaught / "tokenizer.model", base)
    out = tmp_path / "merged"
    assert main(["merge", base, adapter, str(out), "--no-verify"]) == 0
    return base, adapter, out


def streamed(client: openai.OpenAI, request: dict) -> tuple[str, str | None]:
    """The parts of a streamed answer put together, and why it ended."""
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**request, stream=True) if chunk.choices]
    assert sum(bool(chunk.delta.content) for chunk in chunks) > 1, "nothing was streamed"
    return "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason


@pytest.mark.long
def test_openais_client_gets_the_answer_that_base_and_adapter_give_and_that_ends_with_the_turn(merged, tmp_path):
    base, adapter, out = merged
    model, tokenizer = load_named_model(resolve_model(base, adapter))
    generation = GREEDY | {"max_new_tokens": TOKENS}
    expected = [ask(model, tokenizer, [QUESTION], system=system, generation=generation)[0] for system in SYSTEMS]
    assert (expected[0].answer, expected[0].stop_reason) == (AFTER, "end of turn")
    with serving(out, tmp_path / "serve.log") as address:
        client = openai.OpenAI(base_url=address + "/v1", api_key="none")
        for system, answer in zip(SYSTEMS, expected, strict=True):
            messages = [{"role": "system", "content": system}] if system else []
            request = {
                "model": str(out),
                "messages": [*messages, {"role": "user", "content": QUESTION}],
                "temperature": 0,
                "max_tokens": TOKENS,
            }
            (choice,) = client.chat.completions.create(**request).choices
            reason = "stop" if answer.stop_reason == "end of turn" else "length"
            assert (choice.message.content.strip(), choice.finish_reason) == (answer.answer, reason)
            text, finished = streamed(client, request)
            assert (text.strip(), finished) == (answer.answer, reason)
