"""Talk with a model on a page in the browser; with an adapter, see the base model's answers beside its own.

The page is served to this machine alone and asks no other for anything; what the model says is shown as plain text.
"""

import argparse
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from html import escape
from typing import Any

from model_tools.chat import add_model_arguments
from model_tools.checkpoints.model_folder import NamedModel, resolve_model
from sft.core.errors import UserError

LOADS = "PyTorch and Transformers"

HOST = "127.0.0.1"
# The browser itself refuses what Gradio's page, or an answer in it, might fetch from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
STYLE = """.chat {height: calc(100vh - 20rem) !important; min-height: 16rem}
@media (max-width: 640px) {.chat {height: 32vh !important}}
.chat .message-content {white-space: pre-wrap}"""
FONTS = ("Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1 (7860); 0 takes a free one")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    named = resolve_model(arguments.model, arguments.adapter)
    with open_port(arguments.port) as listening, suppress(KeyboardInterrupt):
        _require_gradio()
        from model_tools.chatting.conversation import ChatModel

        model = ChatModel(named, arguments.bits, arguments.max_new_tokens)
        try:
            serve_page(build_page(model, named, arguments.system), listening)
        finally:
            model.end()
    return 0


def open_port(port: int) -> socket.socket:
    """A socket that listens on the port of this machine's own address, before anything slow is done.

    Raises:
        UserError: the port is taken or cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: ports go from 0 to 65535")
    try:
        return socket.create_server((HOST, port))
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(f"--port {port}: {reason}: name another port, or 0 for a free one") from None


def build_page(model, named: NamedModel, system: str | None):
    """The page as Gradio's Blocks: a system message, one or two conversations, a question, three buttons."""
    import gradio

    sides = {f"对话 Chat · {named.base}": True}
    if named.adapter:
        sides = {f"训练前 Before · {named.base}": False, f"训练后 After · {named.adapter}": True}
    with gradio.Blocks(title=named.base, analytics_enabled=False) as page:
        system_box = gradio.Textbox(system or "", label="系统消息 System message", max_lines=4, elem_id="system")
        with gradio.Row():
            # No copy button: it would give the text escaped by `escape_messages`.
            plain: dict[str, Any] = {"render_markdown": False, "latex_delimiters": [], "buttons": []}
            chats = [
                gradio.Chatbot(label=name, elem_classes="chat", height="", min_width=300, **plain) for name in sides
            ]
        histories = [gradio.State([]) for _ in sides]
        question = gradio.Textbox(label="问题 Question", max_lines=8, autofocus=True, elem_id="question")
        with gradio.Row():
            send = gradio.Button("发送 Send", variant="primary", min_width=80, elem_id="send")
            stop = gradio.Button("停止 Stop", min_width=80, elem_id="stop")
            clear = gradio.Button("清空 Clear", min_width=80, elem_id="clear")
        answering = gradio.on(
            [send.click, question.submit],
            partial(answer_on_page, model, list(sides.values())),
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


def answer_on_page(model, sides: list[bool], question: str, system: str, *histories: list[dict]) -> Iterator[list]:
    """Let each side answer, with its adapter or without, one by one, and yield what the page shows meanwhile.

    That is the question box, the chats, and the histories: what was answered, as far as it came.
    """
    import gradio

    from model_tools.chatting.conversation import Conversation

    question = question.strip()
    if not question:
        return
    remembered = list(histories)
    chats = [[*history, {"role": "user", "content": question}] for history in histories]
    yield ["", *map(escape_messages, chats), *remembered]
    for number, with_adapter in enumerate(sides):
        conversation = Conversation(model, system.strip() or None, with_adapter, [*histories[number]])
        shown = chats[number]
        try:
            for text in conversation.ask(question):
                remembered[number] = chats[number] = [*shown, {"role": "assistant", "content": text}]
                # The box is the person's again, who may be typing the next question.
                yield [gradio.skip(), *map(escape_messages, chats), *remembered]
        except UserError as problem:
            raise gradio.Error(str(problem), print_exception=False) from None
        if conversation.answer and conversation.answer.stop_reason == "max_new_tokens":
            tokens = model.settings.max_new_tokens
            gradio.Info(f"回答到 {tokens} 个 token 为止 The answer was cut after {tokens} tokens (--max_new_tokens)")


def escape_messages(messages: list[dict[str, str]]) -> list[dict]:
    """The messages so that Gradio shows each character: it would take tags out, and the indent off a plain string."""
    return [
        {"role": message["role"], "content": [{"type": "text", "text": escape(message["content"])}]}
        for message in messages
    ]


def serve_page(page, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    import gradio
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    port = listening.getsockname()[1]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page of somebody else's that resolves its own name to 127.0.0.1 is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(_with_policy)
    gradio.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        server_port=port,
        theme=gradio.themes.Default(font=FONTS, font_mono=("monospace",)),
        css=STYLE,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", use_colors=False, timeout_graceful_shutdown=1))
    # An open page holds a connection; that Ctrl-C cuts it off is no news, and uvicorn would tell it with a traceback.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
    print(f"http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
    server.run(sockets=[listening])


def _with_policy(app):
    """The same application, with the content security policy in every answer."""
    from starlette.datastructures import MutableHeaders

    async def wrapped(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await app(scope, receive, send_with_policy)

    return wrapped


def _require_gradio() -> None:
    # Both read their switches when they are imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as problem:
        if problem.name != "gradio":
            raise
        raise UserError("Gradio is not installed: python -m pip install -r requirements-web.txt") from None
