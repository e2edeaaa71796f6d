"""Scores a model: identity, how well it learned its name, and retention, how much of the rest survives.

In: a model, its tokenizer, questions, a name. Out: a `Score`. The model and all random states stay as they were, and it
takes no longer than it may by more than a forward pass.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.core.text import counted
from sft.data.identity import OWN, OWNER, mentions, role_of_name
from sft.data.questions import Question, QuestionSet
from sft.evaluation.deadline import Deadline
from sft.models.generate import (
    ANSWER_TOKENS,
    BATCH,
    BATCH_ON_A_GPU,
    CUT_BY_TIME,
    CUT_IN_THINKING,
    Reply,
    reply_to_all,
    room_for,
)
from sft.models.model_state import is_in_parts, preserve_state
from sft.models.unpacked_weights import weights_unpacked
from sft.training.cpu import can_mask_head

# On a CPU the first batch is a small one, whose pace says how large the next may be.
FIRST_BATCH = 8
# Of the seconds of a scoring, the most that reading the texts may take; answers get the rest.
TEXTS_SHARE = 0.25


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
    only says "X's assistant" or "made by X" with that name. Where every training row begins with one system message, or
    the recipe names one, that is `system_message`, and these are answers to questions asked with it, as `chat` asks;
    `without_system` is then of the half that was asked once more without it. Where there is none, every second question
    has a plain one, and `with_system` and `without_system` are the shares of these halves.

    `is_complete` is false where the time was over before all was asked and read: `identity_asked` of `identity_total`
    questions were answered, `ordinary_asked` of `ordinary_total`, and `texts_read` of `texts_total` read.

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
    # Lines of `scores.jsonl` that an earlier version wrote do not have what follows.
    identity_total: int | None = None
    ordinary_total: int | None = None
    texts_read: int | None = None
    texts_total: int | None = None
    with_system_asked: int | None = None
    without_system_asked: int | None = None
    system_message: str | None = None

    def to_dict(self) -> dict:
        """Everything but the answers."""
        return {key: value for key, value in asdict(self).items() if key != "answers"}

    @property
    def balance(self) -> float:
        """Identity weighed with retention: identity x ordinary answers kept x exp(-divergence), from 0 to 1."""
        kept = 1.0 if self.ordinary_kept is None else self.ordinary_kept
        return (self.identity or 0.0) * kept * math.exp(-(self.divergence or 0.0))

    @property
    def is_decisive(self) -> bool:
        """Whether at least half of the identity questions were answered: by fewer, nothing is stopped or kept."""
        return 2 * self.identity_asked >= (self.identity_total or 0)

    def line(self) -> str:
        """The score in one line."""
        of = "" if self.is_complete else f"{self.identity_asked} of {self.identity_total} questions asked; "
        parts = [f"identity {percent(self.identity)} of {self.identity_asked}"]
        parts[0] += f" ({of}zh {percent(self.zh)}, en {percent(self.en)})"
        if self.system_message:
            bare = f"{percent(self.without_system)} of {self.without_system_asked} without"
            parts[0] += f" with the system message, {bare}"
        if self.assistant_of:
            parts[0] += f", only the name's assistant {percent(self.assistant_of)}"
        parts[0] += f", an old name {percent(self.old_name)}"
        if self.ordinary_total:
            of = "" if self.is_complete else f" ({self.ordinary_asked} of {self.ordinary_total} asked)"
            parts.append(
                f"ordinary answers without the name {percent(self.ordinary_kept)} of {self.ordinary_asked}{of}"
            )
        if self.divergence is not None:
            of = "" if self.texts_read == self.texts_total else f" ({self.texts_read} of {self.texts_total} texts)"
            parts.append(f"KL {self.divergence:.3f} nats, perplexity x{self.perplexity_ratio:.2f}{of}")
        if self.cut_in_thinking:
            parts.append(
                f"{counted(self.cut_in_thinking, 'answer')} cut while thinking and not counted "
                "(chat_template_kwargs: {enable_thinking: false} has most models answer at once)"
            )
        return "; ".join(parts)


def read_score(record: Mapping[str, Any]) -> Score:
    """The score in a line of `scores.jsonl`, without its answers; of an earlier version too."""
    return Score(**{key: record[key] for key in record.keys() & Score.__dataclass_fields__}, answers=[])


class Retention(NamedTuple):
    """What reading the texts showed; None without an adapter or a text."""

    divergence: float | None = None
    perplexity_ratio: float | None = None
    texts_read: int = 0


def score(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: QuestionSet,
    name: str,
    old_names: list[str],
    max_seconds: float = math.inf,
    base_states: dict[str, torch.Tensor] | None = None,
) -> Score:
    """Read the texts and ask the questions in batches, for at most `max_seconds` and what one forward pass takes.

    `base_states`, which it fills, spare the next scoring of this adapter what the base model makes of the texts.
    A text or a batch for which there seems to be no time is not begun. Answers that the end of the time cuts are not
    counted, and neither are the others of their batch: those that end early are more often those that give the name.
    """
    started = time.perf_counter()
    with weights_unpacked(model):
        retained = retention(model, tokenizer, questions.texts, max_seconds * TEXTS_SHARE, base_states)
    left = max_seconds - (time.perf_counter() - started)
    with weights_unpacked(model, with_adapter=True):
        answers = _ask(model, tokenizer, questions, name, old_names, Deadline(model, left))
    has_read_all = retained.texts_read == len(questions.texts) or not isinstance(model, PeftModel)
    whole = [answer for answer in answers if not answer.cut_in_thinking]
    about_identity = [answer for answer in whole if answer.kind == "identity"]
    identity = [answer for answer in about_identity if answer.has_system or not questions.system]
    ordinary = [answer for answer in whole if answer.kind == "ordinary"]
    with_system, without = ([each for each in about_identity if each.has_system is has] for has in (True, False))
    return Score(
        identity=_share_naming(identity),
        assistant_of=_mean(answer.is_assistant_of for answer in identity),
        old_name=_mean(bool(answer.old_names) for answer in identity),
        zh=_share_naming(answer for answer in identity if answer.language == "zh"),
        en=_share_naming(answer for answer in identity if answer.language == "en"),
        with_system=_share_naming(with_system),
        with_system_asked=len(with_system),
        without_system=_share_naming(without),
        without_system_asked=len(without),
        system_message=questions.system,
        identity_asked=len(identity),
        identity_total=len(questions.identity),
        ordinary_kept=_mean(not answer.mentions_name for answer in ordinary),
        ordinary_asked=len(ordinary),
        ordinary_total=len(questions.ordinary),
        divergence=retained.divergence,
        perplexity_ratio=retained.perplexity_ratio,
        texts_read=retained.texts_read,
        texts_total=len(questions.texts) if isinstance(model, PeftModel) else 0,
        is_complete=len(answers) == questions.count and has_read_all,
        cut_in_thinking=len(answers) - len(whole),
        seconds=round(time.perf_counter() - started, 2),
        answers=answers,
    )


def retention(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    max_seconds: float = math.inf,
    base_states: dict[str, torch.Tensor] | None = None,
) -> Retention:
    """KL(tuned || base) in nats a token and the perplexity ratio over the texts, or those that there is time for.

    `base_states` are the base model's last hidden states of texts, of which only the head is computed again.
    """
    if not texts or not isinstance(model, PeftModel):
        return Retention()
    states = {} if base_states is None else base_states
    deadline, seconds = Deadline(model, max_seconds), 0.0
    divergence, loss_change, tokens, read = 0.0, 0.0, 0, 0
    for text in texts:
        if not deadline.most(1, seconds):
            break
        started = time.perf_counter()
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        tuned = _log_probabilities(model, ids)
        with model.disable_adapter():
            base = _log_probabilities(model, ids, states, text)
        divergence += (tuned.exp() * (tuned - base)).sum().item()
        following = ids[0, 1:, None]
        loss_change += (base.gather(1, following) - tuned.gather(1, following)).sum().item()
        tokens, read = tokens + len(following), read + 1
        seconds = max(seconds, time.perf_counter() - started)
    if not tokens:
        return Retention()
    # Rounding can make a divergence of nothing slightly less than that.
    return Retention(max(divergence / tokens, 0.0), math.exp(min(loss_change / tokens, 700.0)), read)


def _log_probabilities(
    model: PeftModel, ids: torch.Tensor, known: dict[str, torch.Tensor] | None = None, text: str = ""
) -> torch.Tensor:
    """Of the next token after each but the last, `(tokens - 1, vocabulary)` in float32.

    `known` holds the last hidden states of texts, and gets those of `text`, where the head is all that comes after.
    """
    base: Any = model.get_base_model()
    with preserve_state(model):
        if known is None or is_in_parts(model) or not can_mask_head(base):
            logits = model(input_ids=ids, use_cache=False).logits
        else:
            if text not in known:
                known[text] = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
            logits = base.get_output_embeddings()(known[text])
    return logits[0, :-1].float().log_softmax(-1)


def _ask(
    model, tokenizer, questions: QuestionSet, name: str, old_names: list[str], deadline: Deadline
) -> list[ScoredAnswer]:
    """The answers of whole batches; a batch is no larger than the pace of the last one lets it end in time."""
    waiting = list(_interleaved(questions))
    answers: list[ScoredAnswer] = []
    is_on_cpu, pace = model.device.type == "cpu", 0.0
    size = FIRST_BATCH if is_on_cpu else BATCH_ON_A_GPU
    generation = {"max_new_tokens": room_for(ANSWER_TOKENS, tokenizer), "do_sample": False}
    while batch := waiting[: deadline.most(min(size, len(waiting)), pace)]:
        started = time.perf_counter()
        conversations = [list(question.messages) for _, question in batch]
        replies = reply_to_all(model, tokenizer, conversations, generation | {"max_time": deadline.seconds_left})
        if deadline.agree(lambda: any(reply.stop_reason == CUT_BY_TIME for reply in replies)):  # noqa: B023
            break
        for (kind, question), reply in zip(batch, replies, strict=True):
            answers.append(_scored(kind, question, reply, name, old_names))
        waiting = waiting[len(batch) :]
        pace = (time.perf_counter() - started) / len(batch)
        size = BATCH if is_on_cpu else BATCH_ON_A_GPU
    return answers


def _scored(kind: str, question: Question, reply: Reply, name: str, old_names: list[str]) -> ScoredAnswer:
    role = role_of_name(reply.answer, name, question.text)
    return ScoredAnswer(
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


def _interleaved(questions: QuestionSet) -> Iterator[tuple[str, Question]]:
    """(kind, question), all kinds spread evenly, so that a scoring that runs out of time has asked some of each."""
    kinds = (("identity", questions.identity), ("identity", questions.bare), ("ordinary", questions.ordinary))
    positions: list[tuple[float, str, Question]] = [
        (index / len(asked), kind, question) for kind, asked in kinds for index, question in enumerate(asked)
    ]
    return ((kind, question) for _, kind, question in sorted(positions, key=lambda entry: entry[0]))


def _share_naming(answers: Iterable[ScoredAnswer]) -> float | None:
    return _mean(answer.gives_name for answer in answers)


def _mean(values: Iterable[bool]) -> float | None:
    values = list(values)
    return round(sum(values) / len(values), 4) if values else None


def percent(value: float | None) -> str:
    """A share such as "95%", "-" for none."""
    return "-" if value is None else f"{value:.0%}"
