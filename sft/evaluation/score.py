"""Scores a model: identity, how well it learned its name, and retention, how much of the rest survives.

In: a model, its tokenizer, questions, a name. Out: a `Score`. The model and all random states stay as they were.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.core.text import counted
from sft.data.identity import OWN, OWNER, mentions, role_of_name
from sft.data.questions import Question, QuestionSet
from sft.models.generate import CUT_IN_THINKING, reply_to_all, room_for
from sft.models.model_state import is_in_parts, preserve_state
from sft.training.launch import broadcast_from_main

# Questions in one batch: a GPU takes hardly longer for all of them than for one.
BATCH, BATCH_ON_A_GPU = 16, 64
ANSWER_TOKENS = 48


@dataclass
class ScoredAnswer:
    """One question, the answer, and which names that gives."""

    kind: str  # "identity" or "ordinary"
    question: str
    language: str
    has_system: bool
    answer: str  # with its thinking, which is not looked at for names
    gives_name: bool
    mentions_name: bool
    old_names: list[str]
    cut_in_thinking: bool = False
    is_assistant_of: bool = False  # "I am X's assistant", which does not give the name X


@dataclass
class Score:
    """Identity and retention; shares are of the questions answered, None where none was.

    `identity` is the share of the identity questions whose answer gives the name, `assistant_of` of those whose answer
    only says "X's assistant" or "made by X" with that name.

    An answer that was cut in its thinking says nothing of names: it is counted in `cut_in_thinking` alone.

    `divergence` is KL(tuned || base) of the next token, mean over all tokens of the texts, in nats; `perplexity_ratio`
    is the tuned model's perplexity on them over the base's. Both need an adapter to switch off.
    """

    identity: float | None
    old_name: float | None
    zh: float | None
    en: float | None
    with_system: float | None
    without_system: float | None
    identity_asked: int
    ordinary_kept: float | None
    ordinary_asked: int
    divergence: float | None
    perplexity_ratio: float | None
    is_complete: bool
    seconds: float
    answers: list[ScoredAnswer]
    cut_in_thinking: int = 0
    assistant_of: float | None = None

    def to_dict(self) -> dict:
        """Everything but the answers."""
        return {key: value for key, value in asdict(self).items() if key != "answers"}

    @property
    def balance(self) -> float:
        """Identity weighed with retention: identity x ordinary answers kept x exp(-divergence), from 0 to 1."""
        kept = 1.0 if self.ordinary_kept is None else self.ordinary_kept
        return (self.identity or 0.0) * kept * math.exp(-(self.divergence or 0.0))

    def line(self) -> str:
        """The score in one line."""
        parts = [f"identity {percent(self.identity)} of {self.identity_asked}"]
        parts[0] += f" (zh {percent(self.zh)}, en {percent(self.en)})"
        if self.assistant_of:
            parts[0] += f", only the name's assistant {percent(self.assistant_of)}"
        parts[0] += f", an old name {percent(self.old_name)}"
        if self.ordinary_asked:
            parts.append(f"ordinary answers without the name {percent(self.ordinary_kept)} of {self.ordinary_asked}")
        if self.divergence is not None:
            parts.append(f"KL {self.divergence:.3f} nats, perplexity x{self.perplexity_ratio:.2f}")
        if self.cut_in_thinking:
            parts.append(
                f"{counted(self.cut_in_thinking, 'answer')} cut while thinking and not counted "
                "(chat_template_kwargs: {enable_thinking: false} has most models answer at once)"
            )
        return "; ".join(parts)


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: QuestionSet,
    name: str,
    old_names: list[str],
    max_seconds: float = math.inf,
) -> Score:
    """Ask all questions in batches and read all texts; no batch starts after `max_seconds`."""
    started = time.perf_counter()
    answers, is_complete = _ask(model, tokenizer, questions, name, old_names, started + max_seconds)
    divergence, ratio = retention(model, tokenizer, questions.texts)
    whole = [answer for answer in answers if not answer.cut_in_thinking]
    identity = [answer for answer in whole if answer.kind == "identity"]
    ordinary = [answer for answer in whole if answer.kind == "ordinary"]

    def name_share(**traits) -> float | None:
        """Of the identity questions with these traits, the share whose answers give the name."""
        return _mean(
            answer.gives_name
            for answer in identity
            if all(getattr(answer, key) == value for key, value in traits.items())
        )

    return Score(
        identity=name_share(),
        assistant_of=_mean(answer.is_assistant_of for answer in identity),
        old_name=_mean(bool(answer.old_names) for answer in identity),
        zh=name_share(language="zh"),
        en=name_share(language="en"),
        with_system=name_share(has_system=True),
        without_system=name_share(has_system=False),
        identity_asked=len(identity),
        ordinary_kept=_mean(not answer.mentions_name for answer in ordinary),
        ordinary_asked=len(ordinary),
        divergence=divergence,
        perplexity_ratio=ratio,
        is_complete=is_complete,
        cut_in_thinking=len(answers) - len(whole),
        seconds=round(time.perf_counter() - started, 2),
        answers=answers,
    )


def retention(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[float | None, float | None]:
    """(KL(tuned || base) in nats a token, perplexity ratio) over the texts; None without an adapter or texts."""
    if not texts or not isinstance(model, PeftModel):
        return None, None
    divergence, loss_change, tokens = 0.0, 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        tuned, base = (_log_probabilities(model, ids, with_adapter) for with_adapter in (True, False))
        divergence += (tuned.exp() * (tuned - base)).sum().item()
        following = ids[0, 1:, None]
        loss_change += (base.gather(1, following) - tuned.gather(1, following)).sum().item()
        tokens += len(following)
    return divergence / tokens, math.exp(min(loss_change / tokens, 700.0))


def _log_probabilities(model: PeftModel, ids: torch.Tensor, with_adapter: bool) -> torch.Tensor:
    """Of the next token after each but the last, `(tokens - 1, vocabulary)` in float32."""
    with preserve_state(model), nullcontext() if with_adapter else model.disable_adapter():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


def _ask(
    model, tokenizer, questions: QuestionSet, name: str, old_names: list[str], deadline: float
) -> tuple[list[ScoredAnswer], bool]:
    asked = list(_interleaved(questions))
    answers: list[ScoredAnswer] = []
    size = BATCH if model.device.type == "cpu" else BATCH_ON_A_GPU
    generation = {"max_new_tokens": room_for(ANSWER_TOKENS, tokenizer), "do_sample": False}
    for start in range(0, len(asked), size):
        if _is_late(model, deadline):
            return answers, False
        batch = asked[start : start + size]
        replies = reply_to_all(model, tokenizer, [list(question.messages) for _, question in batch], generation)
        for (kind, question), reply in zip(batch, replies, strict=True):
            role = role_of_name(reply.answer, name, question.text)
            answers.append(
                ScoredAnswer(
                    kind,
                    question.text,
                    question.language,
                    question.has_system,
                    reply.text,
                    gives_name=role == OWN,
                    mentions_name=mentions(reply.answer, name),
                    old_names=[old for old in old_names if role_of_name(reply.answer, old, question.text)],
                    cut_in_thinking=reply.stop_reason == CUT_IN_THINKING,
                    is_assistant_of=role == OWNER,
                )
            )
    return answers, True


def _is_late(model, deadline: float) -> bool:
    """Whether no further batch may start; by the main process's clock where only all together can run the model."""

    def is_over() -> bool:
        return time.perf_counter() > deadline

    return broadcast_from_main(is_over) if is_in_parts(model) else is_over()


def _interleaved(questions: QuestionSet) -> Iterator[tuple[str, Question]]:
    """(kind, question), both kinds spread evenly, so that a scoring that runs out of time has asked some of each."""
    kinds = (("identity", questions.identity), ("ordinary", questions.ordinary))
    positions: list[tuple[float, str, Question]] = [
        (index / len(asked), kind, question) for kind, asked in kinds for index, question in enumerate(asked)
    ]
    return ((kind, question) for _, kind, question in sorted(positions, key=lambda entry: entry[0]))


def _mean(values) -> float | None:
    values = list(values)
    return round(sum(values) / len(values), 4) if values else None


def percent(value: float | None) -> str:
    """A share such as "95%", "-" for none."""
    return "-" if value is None else f"{value:.0%}"
