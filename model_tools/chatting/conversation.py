"""Loads a named model and holds a conversation with it: what was said so far, and answers that are read as they come.

In: a `NamedModel` and questions. Out: text that grows. Knows nothing about terminals or pages.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    BatchEncoding,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from trl import ModelConfig

from model_tools.chatting.streamed_answer import StreamedAnswer, stop_words
from model_tools.checkpoints.model_folder import NamedModel
from model_tools.checkpoints.precision import precision_of
from model_tools.checkpoints.trained_adapter import UNEXPECTED, require_weights
from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models.chat_template import ChatTemplate
from sft.models.generate import generation_config
from sft.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

AT_CONTEXT = "context"  # the reason where the model reads no more tokens than there are


def load_named_model(
    named: NamedModel, bits: int | None = None, chat_template_kwargs: dict[str, Any] | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode, on the accelerator if there is one, and its tokenizer.

    It is held in the precision that `precision_of` says for `bits`. Without `chat_template_kwargs` the chat template is
    given what was saved with the tokenizer. With an adapter the model is a PeftModel, and
    `model.disable_adapter()` gives the base model.

    Raises:
        UserError: there is no such model, or the adapter does not fit it.
    """
    tokenizer = load_tokenizer(named.tokenizer, chat_template_kwargs=chat_template_kwargs)
    precision = precision_of(named, bits)
    placement: dict[str, Any] = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    model: PreTrainedModel | PeftModel = load_model(
        ModelConfig(model_name_or_path=named.base, **precision.settings), **placement
    )
    if named.adapter:
        model = _with_adapter(model, named.adapter, named.base, in_float32=precision.has_float32_adapter)
    if precision.autocast:
        # As accelerate prepares it for training: so the passes are under autocast, and generation is not.
        autocast = torch.autocast(model.device.type, getattr(torch, precision.autocast))
        model.forward = autocast(model.forward)  # type: ignore[method-assign]
    return model.eval(), tokenizer


def _with_adapter(model: PreTrainedModel, folder: Path, base: str, *, in_float32: bool) -> PeftModel:
    from peft import PeftModel

    require_weights(folder)  # PEFT would look for them on the hub
    try:
        return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=in_float32)
    except UNEXPECTED as problem:
        from model_tools.merging.adapter import Adapter

        # Where the adapter itself is damaged, these say it.
        _ = Adapter(folder).config, Adapter(folder).tensors()
        reason = one_line_message(problem, 200)
        raise UserError(f"{folder}: does not fit {base} ({reason}): was it made for it?") from None


def context_length(config: PreTrainedConfig) -> int | None:
    """The tokens that a model reads at most, as far as its positions go; None where they have no end.

    A sliding window is no such end: it moves. Rotary positions that are stretched as they are needed end further out.
    """
    text = config.get_text_config(decoder=True)
    trained = getattr(text, "max_position_embeddings", None)
    rotary = getattr(text, "rope_parameters", None) or {}
    if not isinstance(trained, int) or trained < 1:
        return None
    original = trained if rotary.get("rope_type") == "dynamic" else rotary.get("original_max_position_embeddings") or 0
    return max(trained, int(original * (rotary.get("factor") or 1)))


class ContextFull(UserError):
    """What was said leaves the model no room for an answer."""

    def __init__(self, tokens: int, context: int):
        super().__init__(f"with this question the conversation has {tokens:,} tokens, and the model reads {context:,}")
        self.tokens, self.context = tokens, context


def read_messages(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], context: int | None
) -> tuple[BatchEncoding, int | None]:
    """The messages as a model reads them, and how many tokens fit after them; None where any number does.

    Raises:
        UserError: the chat template refuses them.
        ContextFull: they are more than the model reads.
    """
    text = ChatTemplate(tokenizer).prompt(messages)
    # What is too long is said here; the tokenizer's warning would say it again.
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)
    tokens = prompt["input_ids"].shape[1]
    if context is None:
        return prompt, None
    if tokens >= context:
        raise ContextFull(tokens, context)
    return prompt, context - tokens


class ChatModel:
    """A model that answers one question at a time, greedily; for one answer its adapter can be switched off.

    Raises:
        UserError: the model cannot be loaded, or it has no chat template.
    """

    def __init__(self, named: NamedModel, bits: int | None, max_new_tokens: int):
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens {max_new_tokens}: no answer fits in it: give 1 or more")
        self.model, self.tokenizer = load_named_model(named, bits)
        if not self.tokenizer.chat_template:
            raise UserError(f"{named.tokenizer}: has no chat template: is it a chat model?")
        self.settings = generation_config(
            self.model, self.tokenizer, {"max_new_tokens": max_new_tokens, "do_sample": False}
        )
        self._stop_words = stop_words(ChatTemplate(self.tokenizer))
        self.context = context_length(self.model.config)
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
            ContextFull: they are more than the model reads.
        """
        prompt, room = self._read(messages)
        settings, at_limit = copy.copy(self.settings), "max_new_tokens"
        if room is not None and room < settings.max_new_tokens:
            settings.max_new_tokens, at_limit = room, AT_CONTEXT
        answer = StreamedAnswer(self.tokenizer, settings.eos_token_id, at_limit)
        prompt = prompt.to(self.model.device)
        threading.Thread(target=self._write, args=(prompt, settings, answer, with_adapter)).start()
        return answer

    def require_room(self, messages: list[dict[str, str]]) -> None:
        """See that these messages can be answered.

        Raises:
            UserError: the chat template refuses them.
            ContextFull: they are more than the model reads.
        """
        self._read(messages)

    def _read(self, messages: list[dict[str, str]]) -> tuple[BatchEncoding, int | None]:
        return read_messages(self.tokenizer, messages, self.context)

    def _write(
        self, prompt: BatchEncoding, settings: GenerationConfig, answer: StreamedAnswer, with_adapter: bool
    ) -> None:
        stopping = StoppingCriteriaList([_Stopping(answer, self._is_over)])
        try:
            with self._turn, nullcontext() if with_adapter else self.model.disable_adapter():
                if not (answer.is_stopped or self._is_over.is_set()):
                    self.model.generate(
                        **prompt,
                        generation_config=settings,
                        streamer=answer,
                        stopping_criteria=stopping,
                        stop_strings=self._stop_words,
                        tokenizer=self.tokenizer,
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

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer's text as it grows; then question and answer are part of the conversation.

        An answer that was stopped is kept as far as it came; one of which nothing came is forgotten with its question.
        """
        turn = {"role": "user", "content": question}
        self.answer = self.model.answer([*self.messages, turn], with_adapter=self.with_adapter)
        yield from self.answer
        if self.answer.text or self.answer.stop_reason != "stopped":
            self.turns += [turn, {"role": "assistant", "content": self.answer.text}]

    def require_room(self, question: str) -> None:
        """See that the question can be answered here.

        Raises:
            UserError: the chat template refuses the conversation.
            ContextFull: with it the conversation is more than the model reads.
        """
        self.model.require_room([*self.messages, {"role": "user", "content": question}])

    def stop(self) -> None:
        """Stop the answer being written, if there is one."""
        if self.answer:
            self.answer.stop()

    def start_anew(self, system: str | None) -> None:
        """Forget all turns, under this system message or none."""
        self.system, self.turns = system, []
