"""A tokenizer's chat template at work: conversations as text, where messages' own words lie in it, what ends an answer.

In: a tokenizer. Its `chat_template_kwargs`, which are saved in tokenizer_config.json, go into every rendering; so does
its `chat_template_date`, where it has one, as today's date. Out: text and places in it. All that is known of a template
is learned from what it renders. Knows nothing about loss.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    _compile_jinja_template,
    _get_template_variables,
    render_jinja_template,
)

from sft.core.errors import UserError
from sft.core.text import one_line_message
from sft.models.own_words import Frame, HasMark, Marked, NotFound, Place, Rendered, frame_key, frame_of

KWARGS = "chat_template_kwargs"
# Conversations of so many different orders of roles are remembered.
MOST_FRAMES = 1000
# What templates are tried with.
QUESTION, ANSWER = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}
_CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}

Items = TypeVar("Items", str, list[str])


class ChatTemplate:
    """The chat template of a tokenizer, with what it is always given.

    Raises:
        UserError: the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any] | None = None):
        if not tokenizer.chat_template:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template: use a chat model, or name a template "
                "with chat_template_path"
            )
        self.tokenizer = tokenizer
        # What the template is given beside the messages, such as {enable_thinking: false}.
        self.kwargs: dict[str, Any] = (tokenizer.init_kwargs.get(KWARGS) or {}) if kwargs is None else kwargs

    @property
    def day(self) -> date | None:
        """The day that the template is told; None where it writes no date."""
        if "strftime_now" not in str(self.tokenizer.chat_template):
            return None
        return getattr(self.tokenizer, "chat_template_date", None) or date.today()

    def render(
        self,
        conversations: Sequence[list[dict]],
        tools: list[dict] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> list[str]:
        """Each conversation as the text that a model reads, with what asks it to answer at the end if wanted.

        Raises:
            UserError: the template refuses one of them.
        """
        with self._refusals_explained(tools):
            texts: Any = self.tokenizer.apply_chat_template(
                list(conversations),
                tools=tools,  # type: ignore[arg-type]
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.kwargs,
            )
        return texts

    def _render_directly(self, conversations: Sequence[list[dict]], tools: list[dict] | None, **how: Any) -> Any:
        """What `apply_chat_template` renders with, for messages that need none of its copying and checking."""
        with self._refusals_explained(tools):
            return render_jinja_template(
                conversations,  # type: ignore[arg-type]
                tools=tools,  # type: ignore[arg-type]
                chat_template=self.tokenizer.get_chat_template(tools=tools),
                **how,
                **self.tokenizer.special_tokens_map | self.kwargs,
            )

    @contextmanager
    def _refusals_explained(self, tools: list[dict] | None) -> Iterator[None]:
        try:
            self._tell_date(tools)
            yield
        except Exception as problem:  # a template is somebody else's program, and may fail in any way
            reason = one_line_message(problem, 200) or type(problem).__name__
            raise UserError(
                f"{self.tokenizer.name_or_path}: its chat template refuses this conversation: {reason}"
            ) from None

    def prompt(self, messages: list[dict], tools: list[dict] | None = None) -> str:
        """The text that asks a model for the next answer.

        Raises:
            UserError: the template refuses the messages.
        """
        return self.render([messages], tools, generation_prompt=True)[0]

    def render_marked(self, messages: list[dict], tools: list[dict] | None = None) -> tuple[str, list[Place]]:
        """A conversation as text, and the ranges that the template itself marks by {% generation %}.

        Raises:
            UserError: the template refuses it.
        """
        (text,), (ranges,) = self._render_directly([messages], tools, return_assistant_tokens_mask=True)
        return text, ranges

    @property
    def has_marks(self) -> bool:
        """Whether the template marks by {% generation %} what a model is to say."""
        from trl.chat_template_utils import has_generation_markers  # imports datasets, which no chat needs

        return has_generation_markers(self.tokenizer.get_chat_template())

    def is_ended(self, text: str) -> bool:
        """Whether a text ends with what ends an answer."""
        return any(text.rstrip().endswith(end[-1]) for end in self.ends)

    def token_starts(self, text: str) -> set[int]:
        """Where the tokens of a text begin, and where it ends."""
        encoded = self.tokenizer(text, add_special_tokens=False)
        return {start for start, _ in encoded.encodings[0].offsets} | {len(text)}  # type: ignore[index]

    def locate(
        self,
        conversations: Sequence[list[dict]],
        tools: list[dict] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> list[Rendered]:
        """As `render`, with the places of all messages' own words.

        Raises:
            UserError: the template refuses a conversation, or changes its words so that they cannot be found.
        """
        texts = self.render(conversations, tools, generation_prompt=generation_prompt)
        # Of tools that a template writes, nobody knows where they end.
        known = self._frames if tools is None else {}
        keys = [frame_key(messages, generation_prompt) for messages in conversations]
        found = [
            known[key].locate(text, messages) if key in known else None
            for key, text, messages in zip(keys, texts, conversations, strict=True)
        ]
        if rest := [number for number, rendered in enumerate(found) if rendered is None]:
            marked = [Marked(conversations[number]) for number in rest]
            told = [one.messages for one in marked]
            marked_texts, _ = self._render_directly(told, tools, add_generation_prompt=generation_prompt)
            for number, one, marked_text in zip(rest, marked, marked_texts, strict=True):
                found[number] = self._found(one, texts[number], marked_text)
                if (
                    (key := keys[number])
                    and len(known) < MOST_FRAMES
                    and (frame := frame_of(marked_text, conversations[number]))
                ):
                    known[key] = frame
        return found  # type: ignore[return-value]

    def _found(self, marked: Marked, text: str, marked_text: str) -> Rendered:
        try:
            return marked.find(text, marked_text)
        except HasMark as problem:
            raise UserError(str(problem)) from None
        except NotFound as problem:
            raise UserError(
                f"{self.tokenizer.name_or_path}: its chat template {problem}, so that {problem.shown!r} cannot be "
                "found in its text: put {% generation %} ... {% endgeneration %} around the answer and its end-of-turn "
                "token in a copy, and name that with chat_template_path"
            ) from None

    @cached_property
    def _frames(self) -> dict[tuple, Frame]:
        """What stands around the words of conversations of certain roles, as far as it was seen."""
        return {}

    @cached_property
    def question(self) -> Rendered:
        """A question with the prompt that asks for its answer."""
        return self.locate([[QUESTION]], generation_prompt=True)[0]

    def agreeing_kwargs(self) -> dict[str, Any] | None:
        """Arguments with which the prompt is what an answer is trained after; None where none are found."""
        names = _get_template_variables(self.tokenizer.get_chat_template())
        switches = sorted(name for name in names if "think" in name or "reason" in name)
        for name, value in itertools.product(switches, (False, True)):
            kwargs = self.kwargs | {name: value}
            other = ChatTemplate(self.tokenizer, kwargs)
            try:
                if other.render([[QUESTION, ANSWER]])[0].startswith(other.prompt([QUESTION])):
                    return kwargs
            except UserError:
                continue
        return None

    @cached_property
    def controls(self) -> re.Pattern:
        """What finds a token of the tokenizer that stands for itself in any text, such as <|im_end|>."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        return token_pattern([*added, *self.tokenizer.all_special_tokens])

    @cached_property
    def special_tokens(self) -> re.Pattern:
        """What finds a special token, which is left out of a text for people; <think> is often none."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return token_pattern([*added, *self.tokenizer.all_special_tokens])

    @cached_property
    def ends(self) -> list[tuple[str, ...]]:
        """The tokens that end an answer: as the last message first; then, if it differs, where other messages follow.

        Empty where the template writes none. A text that the tokenizer has no token for counts as one.
        """
        last, middle = self._endings
        if agreed := common_start(last, middle):
            return [tuple(self._whole_tail or agreed)]
        if last or middle:
            return [tuple(end) for end in (last, middle) if end]
        text = self._common_tail.strip()
        return [(text,)] if text else []

    @cached_property
    def closing_words(self) -> str:
        """What of the end of an answer is words, which a text without special tokens still shows.

        Empty too where the template takes no plain question, as one that must be given tools.
        """
        try:
            return self.special_tokens.sub("", "".join(self.ends[0])) if self.ends else ""
        except UserError:
            return ""

    @cached_property
    def call_ends(self) -> list[tuple[str, ...]]:
        """As `ends`, of an answer that calls tools."""
        try:
            text = self.render([[QUESTION, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]])[0].rstrip()
        except UserError:
            return self.ends
        last = [match[0] for match in self.controls.finditer(text) if match.end() == len(text)]
        return [*([tuple(last)] if last else []), *self.ends]

    @cached_property
    def end_patterns(self) -> list[re.Pattern]:
        """What finds each of `ends`, with the blanks before it."""
        return [re.compile(rf"\s*{re.escape(''.join(end))}") for end in self.ends]

    @cached_property
    def call_end_patterns(self) -> list[re.Pattern]:
        """As `end_patterns`, of `call_ends`."""
        return [re.compile(re.escape("".join(end))) for end in self.call_ends]

    @cached_property
    def end_tokens(self) -> list[int]:
        """The token at which a model is to stop, as the template ends the last answer; empty where it ends none.

        Empty too where the template takes no plain question, as one that must be given tools.
        """
        try:
            ids = self.tokenizer(self.ends[0][-1], add_special_tokens=False)["input_ids"] if self.ends else []
        except UserError:
            return []
        return ids if len(ids) == 1 else []

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether an answer reads otherwise once another question follows it: without its thinking, say."""
        heads = []
        for rendered in self._probes:
            question, answer = rendered.words[0], rendered.words[1]
            heads.append(rendered.text[question[1] : answer[0]] if question and answer else "")
        last, middle = self._endings
        ends_last_otherwise = bool(last) and last[0] not in middle[:1]
        return heads[0] != heads[1] or ends_last_otherwise

    @cached_property
    def constant_prompt(self) -> str | None:
        """What every prompt has after a user's words, what stands before them being as in training.

        None where a prompt may depend on what was said, as where thinking can be switched on and off by a word in it.
        """
        if re.search("think|reason", str(self.tokenizer.chat_template), re.IGNORECASE):
            return None
        prompts = set()
        for system in ([], [{"role": "system", "content": "Three."}]):
            for earlier in ([], [QUESTION, ANSWER]):
                asked = [*system, *earlier, QUESTION]
                try:
                    (prompt,) = self.locate([asked], generation_prompt=True)
                    (text,) = self.render([[*asked, ANSWER]])
                except UserError:
                    continue  # it takes no system message
                place = prompt.words[len(asked) - 1]
                if not place or not text.startswith(prompt.text):
                    return None
                prompts.add(prompt.text[place[1] :])
        return prompts.pop() if len(prompts) == 1 else None

    @cached_property
    def _probes(self) -> list[Rendered]:
        """A question and its answer, alone and with another question and answer after them."""
        return self.locate([[QUESTION, ANSWER], [QUESTION, ANSWER, QUESTION, ANSWER]])

    @cached_property
    def _tails(self) -> tuple[str, str]:
        """What follows an answer at the end of a conversation, and before another question."""
        alone, followed = self._probes
        last, answer, question = alone.words[1], followed.words[1], followed.words[2]
        if not (last and answer and question):
            return "", ""
        return alone.text[last[1] :], followed.text[answer[1] : question[0]]

    @cached_property
    def _endings(self) -> tuple[list[str], list[str]]:
        """The control tokens that end an answer, at the end of a conversation and before another question."""
        last, middle = map(self._ending_controls, self._tails)
        if last and last[0] not in middle[:1] and self.question.text.endswith(self._tails[0]):
            # It asks for the next answer, prompt wanted or not.
            return [], middle
        return last, middle

    @property
    def _common_tail(self) -> str:
        """What follows every answer, up to where a token begins that not all have."""
        tail, common = self._tails[0], common_start(*self._tails)
        cut = (match.start() for match in self.controls.finditer(tail) if match.start() < len(common) < match.end())
        return common[: next(cut, None)]

    @property
    def _whole_tail(self) -> list[str]:
        """What follows the last answer up to a blank, tokens and words between them, where a question follows it too.

        Empty where something else may follow an answer, or no token comes last.
        """
        last, middle = (tail.lstrip() for tail in self._tails)
        pieces = [piece for piece in re.split(f"({self.controls.pattern})", last) if piece]
        pieces = list(itertools.takewhile(lambda piece: not piece.isspace(), pieces))
        is_whole = middle.startswith("".join(pieces)) and self.controls.fullmatch("".join(pieces[-1:]))
        return pieces if is_whole else []

    def _ending_controls(self, tail: str) -> list[str]:
        """The control tokens that end an answer: those that follow it, after blanks, and each other at once."""
        ending: list[str] = []
        position = len(tail) - len(tail.lstrip())
        while match := self.controls.match(tail, position):
            if self._opens_question(tail[position:]):
                break
            ending.append(match[0])
            position = match.end()
        return ending

    def _opens_question(self, rest: str) -> bool:
        """Whether what follows an answer from a control token on belongs to a question, not to the answer.

        Such a text stands before a question; but what ends a question may end an answer too, unless it stands at the
        start of a conversation, where nothing was ended yet.
        """
        place = self.question.words[0]
        before, after = (self.question.text[: place[0]], self.question.text[place[1] :]) if place else ("", "")
        if not before.endswith(rest):
            return False
        is_first = not self.controls.sub("", before.removesuffix(rest)).strip()
        control = self.controls.match(rest)
        return is_first or not (control and after.lstrip().startswith(control[0]))

    def _tell_date(self, tools: list[dict] | None) -> None:
        """Let `strftime_now` give this template's date."""
        if day := self.day:
            source = self.tokenizer.get_chat_template(tools=tools)
            _compile_jinja_template(source).globals["strftime_now"] = day.strftime


def token_pattern(tokens: Iterable[str]) -> re.Pattern:
    """What finds any of the tokens in a text, the longest first; nothing where there are none."""
    longest_first = sorted(set(tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def common_start(one: Items, other: Items) -> Items:
    """What two texts, or two lists, begin with alike."""
    pairs = zip(one, other, strict=False)
    length = next((index for index, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))
    return one[:length]
