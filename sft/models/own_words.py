"""Finds where messages' own words lie in a rendered conversation.

In: messages, what a chat template made of them, and of the same ones with marks around their words. Out: places in the
text. A conversation whose words stand between the same texts as those of an earlier one needs no marks. Knows nothing
about templates or loss.
"""

import itertools
import json
import re
from dataclasses import dataclass
from functools import cached_property

# A character before and one after a message's own words, of Unicode's last private-use plane, show where they went.
FIRST_MARK = 0x100000
MARK = re.compile("([\U00100000-\U0010fffd])")
START_OF_THINKING, END_OF_THINKING = "<think>", "</think>"
# What a message has that is nothing but words.
PLAIN = {"role", "content"}

Place = tuple[int, int]


class HasMark(Exception):
    """A message has a mark of its own."""


class NotFound(Exception):
    """The template does something to a message, which begins as `shown`, so that it cannot be found."""

    def __init__(self, reason: str, message: dict):
        super().__init__(reason)
        self.shown = message["content"][:40]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and of each message where the parts of its own words lie; None where one is not there."""

    text: str
    places: list[dict[str, Place | None]]

    @cached_property
    def words(self) -> list[Place | None]:
        """From the first to the last of each message's own words; None where none of them is in the text."""
        return [_around(list(filter(None, places.values()))) for places in self.places]

    def missing(self, number: int) -> list[str]:
        """The parts of a message that the template left out."""
        return [part for part, place in self.places[number].items() if place is None]


@dataclass(frozen=True)
class Frame:
    """What stands before, between and after the words of messages that have nothing else."""

    gaps: list[str]

    def locate(self, text: str, messages: list[dict]) -> Rendered | None:
        """The places of the messages in their text, where it is this frame around their words."""
        contents = [message["content"] for message in messages]
        first, *after = self.gaps
        if text != first + "".join(map(str.__add__, contents, after)) or MARK.search(text):
            return None
        places: list[dict[str, Place | None]] = []
        end = len(first)
        for content, gap in zip(contents, after, strict=True):
            start, end = end, end + len(content)
            begin, stop = start, end
            if content[0].isspace() or content[-1].isspace():
                begin += len(content) - len(content.lstrip())
                stop -= len(content) - len(content.rstrip())
            places.append({"content": (begin, stop)})
            end += len(gap)
        return Rendered(text, places)


def frame_key(messages: list[dict], generation_prompt: bool) -> tuple | None:
    """What conversations in one frame have in common; None of messages that are more than words.

    Where one thinks, a template may drop that.
    """
    for message in messages:
        content = message["content"]
        if message.keys() != PLAIN or END_OF_THINKING in content or not content.strip():
            return None
    return generation_prompt, *(message["role"] for message in messages)


def frame_of(marked_text: str, messages: list[dict]) -> Frame | None:
    """The frame of a conversation of which each content, whole, stands once in the text, in their order."""
    pieces = MARK.split(marked_text)
    marks, contents = list(map(ord, pieces[1::2])), [message["content"] for message in messages]
    is_whole = marks == list(range(FIRST_MARK, FIRST_MARK + 2 * len(messages))) and pieces[2::4] == contents
    return Frame(pieces[::4]) if is_whole else None


class Marked:
    """Messages with marks around their words; `parts` says by their numbers of which message and which part."""

    def __init__(self, messages: list[dict]):
        self._given = messages
        self.parts: list[tuple[int, str]] = []
        self.messages = [self._mark(number, message) for number, message in enumerate(messages)]

    def find(self, text: str, marked_text: str) -> Rendered:
        """The places of all parts in the text, which is what the template makes of the messages without marks.

        Raises:
            NotFound: the template makes something else of them because of the marks, or writes one twice.
            HasMark: a message has such a mark of its own.
        """
        pieces = MARK.split(marked_text)
        words, found = pieces[::2], pieces[1::2]
        if "".join(words) != text:
            _refuse_marks(self._given)
            raise NotFound("changes it", self._given[-1])
        marks: dict[int, int] = {}
        for mark, position in zip(map(ord, found), itertools.accumulate(map(len, words)), strict=False):
            if mark in marks:
                number, part = self.parts[(mark - FIRST_MARK) // 2]
                if part == "content" and self._given[number]["role"] != "system":
                    raise NotFound("writes it twice", self._given[number])
            else:
                marks[mark] = position
        places: list[dict[str, Place | None]] = [{} for _ in self._given]
        for opens, (number, part) in zip(itertools.count(FIRST_MARK, 2), self.parts, strict=False):
            is_whole = opens in marks and opens + 1 in marks
            places[number][part] = (marks[opens], marks[opens + 1]) if is_whole else None
        return Rendered(text, places)

    def _mark(self, number: int, message: dict) -> dict:
        """A message with marks around its words, within the blanks that a template may strip."""
        marked = dict(message)
        content = message["content"]
        if message["role"] == "assistant":
            if reasoning := message.get("reasoning_content"):
                marked["reasoning_content"] = self._around(number, "reasoning_content", reasoning)
            thinking, end, content = content.rpartition(END_OF_THINKING)
            before, start, thinking = thinking.rpartition(START_OF_THINKING)
            marked["content"] = f"{before}{start}{self._around(number, 'thinking', thinking)}{end}"
            calls = enumerate(message.get("tool_calls") or ())
            if named := [self._around_name(number, index, call) for index, call in calls]:
                marked["tool_calls"] = named
        else:
            marked["content"] = ""
        marked["content"] += self._around(number, "content", content)
        return marked

    def _around(self, number: int, part: str, text: str) -> str:
        words = text.strip()
        if not words:
            return text
        opens = FIRST_MARK + 2 * len(self.parts)
        self.parts.append((number, part))
        before, _, after = text.partition(words)
        return f"{before}{chr(opens)}{words}{chr(opens + 1)}{after}"

    def _around_name(self, number: int, index: int, call: dict) -> dict:
        function = call.get("function", call)
        named = function | {"name": self._around(number, f"tool_calls[{index}]", function["name"])}
        return call | {"function": named} if "function" in call else named


def _around(places: list[Place]) -> Place | None:
    """From the start of the first place to the end of the last."""
    if len(places) < 2:
        return places[0] if places else None
    return min(start for start, _ in places), max(end for _, end in places)


def _refuse_marks(messages: list[dict]) -> None:
    if held := MARK.search(json.dumps(messages, ensure_ascii=False)):
        raise HasMark(
            f"U+{ord(held[0]):X}, a private-use character, stands in a message, and answers are found by such: take it "
            "out"
        )
