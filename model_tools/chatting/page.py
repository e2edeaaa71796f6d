"""The chat page as Gradio's Blocks: before and after training beside each other, or one model alone.

In: a model and its name. Out: a page, to be served. What a model says is shown as plain text, character by character.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import Any

import gradio

from model_tools.chatting.conversation import AT_CONTEXT, ChatModel, ContextFull, Conversation
from model_tools.checkpoints.asked import score_under
from model_tools.checkpoints.model_folder import NamedModel, display_name
from sft.core.errors import UserError
from sft.core.language import CHINESE, ENGLISH, Text, _, lines_shown, ngettext, shown_languages
from sft.data.rows.canonical import answered

SECONDS_A_DRAWING = 1 / 30
# Questions to begin with, by the language that is shown.
EXAMPLES = {
    CHINESE: ["你是谁？", "你叫什么名字？", "用一句话介绍一下北京。"],
    ENGLISH: ["Who are you?", "What is your name?", "Describe Paris in one sentence."],
}
SYSTEM, QUESTION = _("System message"), _("Question")
SEND, STOP, CLEAR, CHAT = _("Send"), _("Stop"), _("Clear"), _("Chat")
FONTS = ("Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif")
STYLE = """h1 {text-align: center; overflow-wrap: anywhere; margin: 0; line-height: 1.7}
@media (max-width: 640px) {h1 {font-size: 1.2rem !important}}
.sides p {margin: 0 auto; max-width: 60rem; text-align: center; font-size: 0.9rem; line-height: 1.5}
.chat {min-height: 14rem}
.beside {height: calc(100vh - 31rem) !important}
.alone {height: calc(100vh - 15rem) !important}
@media (max-width: 640px) {.beside {height: 30vh !important}}
.chat .message-content {white-space: pre-wrap}"""


def build_page(model: ChatModel, named: NamedModel, system: str | None) -> gradio.Blocks:
    """The page for a model with an adapter, which has two sides, or for one without."""
    return _two_sides(model, named, system) if named.adapter else _one_side(model, named, system)


def _system_box(named: NamedModel, system: str | None) -> gradio.Textbox:
    """Where the system message stands, with what it does for the name, as the run scored it."""
    info, score = None, score_under(named.adapter or Path(named.base), system)
    if score:
        info = str(
            _(
                "As scored in training: {with_it:.0%} of the answers give the name with this message, {without:.0%} "
                "without it.",
                with_it=score["with_system"],
                without=score["without_system"],
            )
        )
    return gradio.Textbox(system or "", label=str(SYSTEM), info=info, max_lines=4, elem_id="system")


def _two_sides(model: ChatModel, named: NamedModel, system: str | None) -> gradio.Blocks:
    base, tuned = display_name(named.base), display_name(named.adapter or named.base)
    before, after = _("Before training: {model}", model=base), _("After training: {model}", model=tuned)
    sides = {str(before): False, str(after): True}
    title = str(_("{model}: before and after training", model=tuned))
    sentence = _(
        "Two models answer each question: first, on the left, {base} as it was before training; then, on the right, "
        "the same model with the adapter {adapter}. On a narrow page the first stands above the second.",
        base=base,
        adapter=tuned,
    )
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"<h1>{escape(title)}</h1>")
        # Markdown, since Gradio's HTML evaluates strings, which the page's policy refuses.
        gradio.Markdown("".join(f"<p>{escape(line)}</p>" for line in lines_shown([sentence])), elem_classes=["sides"])
        system_box = _system_box(named, system)
        with gradio.Row():
            chats = [_chatbot(name, "beside", min_width=300) for name in sides]
        histories = [gradio.State([]) for _ in sides]
        question = gradio.Textbox(label=str(QUESTION), max_lines=8, autofocus=True, elem_id="question")
        gradio.Examples(_examples(), question, label=str(_("Examples")), api_visibility="private")
        with gradio.Row():
            send = gradio.Button(str(SEND), variant="primary", min_width=80, elem_id="send")
            stop = gradio.Button(str(STOP), min_width=80, elem_id="stop")
            clear = gradio.Button(str(CLEAR), min_width=80, elem_id="clear")
        answering = gradio.on(
            [send.click, question.submit],
            partial(answer_beside, model, list(sides.values())),
            [question, system_box, *histories],
            [question, *chats, *histories],
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="minimal",
            api_visibility="private",
        )
        stop.click(None, cancels=[answering])
        emptied = [*chats, *histories]
        # Gradio gives each chat a small button that empties it; the model must not remember what it no longer shows.
        gradio.on(
            [clear.click, *(chat.clear for chat in chats)],
            lambda: [[]] * len(emptied),
            None,
            emptied,
            cancels=[answering],
            api_visibility="private",
        )
    return page


class _PlainChat(gradio.ChatInterface):
    """Gradio's chat, in which every message is shown character by character."""

    def _message_as_message_dict(self, message: Any, role: Any) -> list:
        return [as_shown(role, message["text"] if isinstance(message, dict) else message)]

    def _pop_last_user_message(self, history: list) -> tuple:
        rest, message = super()._pop_last_user_message(history)
        return rest, unescape(str(message))


def _one_side(model: ChatModel, named: NamedModel, system: str | None) -> gradio.Blocks:
    name = display_name(named.base)
    title = str(_("Chat with {model}", model=name))
    box = gradio.Textbox(
        placeholder=str(QUESTION),
        max_lines=8,
        autofocus=True,
        elem_id="question",
        submit_btn=str(SEND),
        stop_btn=str(STOP),
        scale=7,
    )
    return _PlainChat(
        partial(answer_alone, model),
        title=escape(title),
        chatbot=_chatbot(f"{CHAT}: {name}", "alone"),
        textbox=box,
        additional_inputs=[_system_box(named, system)],
        additional_inputs_accordion=gradio.Accordion(str(SYSTEM), open=bool(system), render=False),
        examples=[[example] for example in _examples()],
        cache_examples=False,
        analytics_enabled=False,
        api_visibility="private",
        concurrency_limit=1,
        fill_height=False,
    )


def _examples() -> list[str]:
    return [example for language in shown_languages() for example in EXAMPLES[language]]


def _chatbot(label: str, place: str, **how: Any) -> gradio.Chatbot:
    # No copy button: it would give the text escaped by `as_shown`.
    plain: dict[str, Any] = {"render_markdown": False, "latex_delimiters": [], "buttons": []}
    return gradio.Chatbot(label=label, elem_classes=["chat", place], height="", **plain, **how)


def answer_alone(model: ChatModel, question: str, history: list[dict], system: str) -> Iterator[str]:
    """Yield the answer to a question, as far as it came, after what was said in the history."""
    turns = [message for pair in answered([_as_said(message) for message in history]) for message in pair]
    conversation = Conversation(model, system.strip() or None, turns=turns)
    with _Reported(conversation):
        yield from _paced(conversation.ask(question.strip()))


def answer_beside(
    model: ChatModel, sides: list[bool], question: str, system: str, *histories: list[dict]
) -> Iterator[list]:
    """Let each side answer, with its adapter or without, one by one, and yield what the page shows meanwhile.

    That is the question box, the chats, and the histories: what was answered, as far as it came.
    """
    question = question.strip()
    if not question:
        return
    conversations = [
        Conversation(model, system.strip() or None, with_adapter, [*history])
        for with_adapter, history in zip(sides, histories, strict=True)
    ]
    for conversation in conversations:
        with _Reported(conversation):
            conversation.require_room(question)
    remembered = list(histories)
    asked = [[*history, {"role": "user", "content": question}] for history in histories]
    chats = [*asked]
    yield ["", *map(_all_as_shown, chats), *remembered]
    for number, conversation in enumerate(conversations):
        with _Reported(conversation):
            for text in _paced(conversation.ask(question)):
                remembered[number] = chats[number] = [*asked[number], {"role": "assistant", "content": text}]
                # The box is the person's again, who may be typing the next question.
                yield [gradio.skip(), *map(_all_as_shown, chats), *remembered]


def _paced(texts: Generator[str, None, None]) -> Iterator[str]:
    """The texts so far, some dozens a second, and the last: a page draws the whole answer anew for each."""
    shown_at, text, is_shown = 0.0, "", True
    with closing(texts):
        for text in texts:
            is_shown = time.monotonic() - shown_at >= SECONDS_A_DRAWING
            if is_shown:
                shown_at = time.monotonic()
                yield text
        if not is_shown:
            yield text


class _Reported:
    """Reports on the page what went wrong in an answer, and at its end that it is not a whole one."""

    def __init__(self, conversation: Conversation):
        self.conversation = conversation

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind, problem: BaseException | None, _traceback) -> None:
        if isinstance(problem, ContextFull):
            said = _(
                "The conversation has {tokens:,} tokens, and the model reads {context:,}: clear it, or ask in fewer "
                "words.",
                tokens=problem.tokens,
                context=problem.context,
            )
            raise gradio.Error(_as_lines(said), print_exception=False) from None
        if isinstance(problem, UserError):
            raise gradio.Error(escape(str(problem)), print_exception=False) from None
        if problem or not self.conversation.answer:
            return
        model, reason = self.conversation.model, self.conversation.answer.stop_reason
        if reason == "max_new_tokens":
            tokens = model.settings.max_new_tokens
            said = ngettext(
                "The answer was cut after {count:,} token (--max_new_tokens).",
                "The answer was cut after {count:,} tokens (--max_new_tokens).",
                tokens,
            )
            gradio.Info(_as_lines(said))
        elif reason == AT_CONTEXT:
            said = _(
                "The answer was cut: the conversation fills the {context:,} tokens that the model reads. Clear it to "
                "begin anew.",
                context=model.context,
            )
            gradio.Info(_as_lines(said))


def _as_lines(text: Text) -> str:
    """The text as HTML, each language on a line of its own."""
    return "<br>".join(map(escape, lines_shown([text])))


def as_shown(role: str, text: str) -> dict:
    """A message so that Gradio shows each character: it would obey tags, and take the indent off a plain string."""
    return {"role": role, "content": [{"type": "text", "text": escape(text)}]}


def _all_as_shown(turns: list[dict[str, str]]) -> list[dict]:
    return [as_shown(turn["role"], turn["content"]) for turn in turns]


def _as_said(message: dict) -> dict[str, str]:
    """A message that Gradio shows, as it was said."""
    return {"role": message["role"], "content": unescape("".join(part.get("text", "") for part in message["content"]))}
