"""Loads a named model and holds a conversation with it: what was said so far, and answers that are read as they come.

In: a `NamedModel` and questions. Out: text that grows. Knows nothing about terminals or pages.
"""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from trl import ModelConfig

from model_tools.checkpoints.model_folder import NamedModel
from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models.chat_template import ChatTemplate
from sft.models.generate import answer_text, generation_config
from sft.models.loading import load_model, load_tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def load_named_model(
    named: NamedModel, bits: int = 16, chat_template_kwargs: dict[str, Any] | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode, on the accelerator if there is one, and its tokenizer.

    `bits` is 4 (NF4), 8 or 16; 16 keeps the precision of the files. Without `chat_template_kwargs` the chat template is
    given what was saved with the tokenizer. With an adapter the model is a PeftModel, and
    `model.disable_adapter()` gives the base model.

    Raises:
        UserError: there is no such model, or the adapter does not fit it.
    """
    tokenizer = load_tokenizer(named.tokenizer, chat_template_kwargs=chat_template_kwargs)
    settings = ModelConfig(
        model_name_or_path=named.base,
        # What 4-bit weights are computed in has to be named.
        dtype="bfloat16" if bits == 4 else "auto",
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
    )
    placement: dict[str, Any] = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    model: PreTrainedModel | PeftModel = load_model(settings, **placement)
    if named.adapter:
        try:
            model = PeftModel.from_pretrained(model, str(named.adapter))
        except (ValueError, RuntimeError) as problem:
            reason = one_line_message(problem, 200)
            raise UserError(f"{named.adapter}: does not fit {named.base} ({reason}): was it made for it?") from None
    return model.eval(), tokenizer


class StreamedAnswer(BaseStreamer):
    """An answer while it is written: iterate, once, for the whole text so far; stripped of white space.

    Transformers' TextIteratorStreamer decodes each line for itself, which costs sentencepiece models the first space
    of a line, and shows an end of turn that the tokenizer does not call special; here `text` is what decoding all
    tokens gives. `stop_reason` is then "end of turn", "max_new_tokens" or "stopped".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: list[int]):
        self.text = ""
        self.stop_reason: str | None = None
        self.problem: Exception | None = None
        self._tokenizer, self._ends = tokenizer, ends
        self._written: SimpleQueue[list[int] | None] = SimpleQueue()
        self._is_prompt = True
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[str]:
        tokens: list[int] = []
        try:
            while (written := self._written.get()) is not None:
                tokens += written
                text = self._decode(tokens)
                # The first bytes of a character are not text yet.
                if text != self.text and not text.endswith(UNFINISHED):
                    self.text = text
                    yield text
            if self.problem:
                raise self.problem
            self.stop_reason = self._reason(tokens)
            if (text := self._decode(tokens)) != self.text:
                self.text = text
                yield text
        finally:
            # Whoever stops reading wants no more of it.
            self.stop()

    def stop(self) -> None:
        """Write no further token; what is written stays."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called, or nobody reads any more."""
        return self._stop.is_set()

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt first, then with each token."""
        if not self._is_prompt:
            self._written.put(value.tolist())
        self._is_prompt = False

    def end(self) -> None:
        """Called by `generate` after the last token."""
        self._written.put(None)

    def _decode(self, tokens: list[int]) -> str:
        return answer_text(self._tokenizer, tokens, self._ends)[0]

    def _reason(self, tokens: list[int]) -> str:
        if tokens and tokens[-1] in self._ends:
            return "end of turn"
        return "stopped" if self.is_stopped else "max_new_tokens"


class ChatModel:
    """A model that answers one question at a time, greedily; for one answer its adapter can be switched off.

    Raises:
        UserError: the model cannot be loaded, or it has no chat template.
    """

    def __init__(self, named: NamedModel, bits: int, max_new_tokens: int):
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens {max_new_tokens}: no answer fits in it: give 1 or more")
        self.model, self.tokenizer = load_named_model(named, bits)
        if not self.tokenizer.chat_template:
            raise UserError(f"{named.tokenizer}: has no chat template: is it a chat model?")
        self.settings = generation_config(
            self.model, self.tokenizer, {"max_new_tokens": max_new_tokens, "do_sample": False}
        )
        # An adapter is on or off for the whole model, so answers must take turns.
        self._turn = threading.Lock()
        self._is_over = threading.Event()

    def end(self) -> None:
        """Stop the answer being written and begin no other: a program that ends would wait for its last token."""
        self._is_over.set()

    def answer(self, messages: list[dict[str, str]], *, with_adapter: bool = True) -> StreamedAnswer:
        """Begin to answer; the model writes in a thread of its own, after any answer that it is still writing.

        Raises:
            UserError: the chat template refuses the messages. While the answer is read: the memory is not enough.
        """
        text = ChatTemplate(self.tokenizer).prompt(messages)
        prompt = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        answer = StreamedAnswer(self.tokenizer, self.settings.eos_token_id)
        threading.Thread(target=self._write, args=(prompt, answer, with_adapter)).start()
        return answer

    def _write(self, prompt: dict, answer: StreamedAnswer, with_adapter: bool) -> None:
        stopping = StoppingCriteriaList([_Stopping(answer, self._is_over)])
        try:
            with self._turn, nullcontext() if with_adapter else self.model.disable_adapter():
                if not (answer.is_stopped or self._is_over.is_set()):
                    self.model.generate(
                        **prompt, generation_config=self.settings, streamer=answer, stopping_criteria=stopping
                    )
        except torch.OutOfMemoryError:
            answer.problem = UserError("the memory is not enough to answer: start anew, or take --bits 4")
        except Exception as problem:
            answer.problem = problem
        finally:
            answer.end()


class _Stopping(StoppingCriteria):
    """Ends generation with the token being written once the answer is stopped, or all is over."""

    def __init__(self, answer: StreamedAnswer, is_over: threading.Event):
        self.answer, self.is_over = answer, is_over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        is_stopped = self.answer.is_stopped or self.is_over.is_set()
        return torch.full((len(input_ids),), is_stopped, device=input_ids.device)


@dataclass
class Conversation:
    """What was said to a model and what it answered, perhaps under a system message."""

    model: ChatModel
    system: str | None = None
    with_adapter: bool = True
    turns: list[dict[str, str]] = field(default_factory=list)
    answer: StreamedAnswer | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, if there is one, and all turns."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer's text as it grows; then question and answer are part of the conversation.

        An answer that was stopped is kept as far as it came; one of which nothing came is forgotten with its question.
        """
        turn = {"role": "user", "content": question}
        self.answer = self.model.answer([*self.messages, turn], with_adapter=self.with_adapter)
        yield from self.answer
        if self.answer.text or self.answer.stop_reason != "stopped":
            self.turns += [turn, {"role": "assistant", "content": self.answer.text}]

    def stop(self) -> None:
        """Stop the answer being written, if there is one."""
        if self.answer:
            self.answer.stop()

    def start_anew(self, system: str | None) -> None:
        """Forget all turns, under this system message or none."""
        self.system, self.turns = system, []
