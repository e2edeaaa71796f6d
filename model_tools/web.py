"""Talk with a model on a page in the browser; with an adapter, see the base model's answers beside its own.

The page is served to this machine alone and asks no other for anything; what the model says is shown as plain text.
"""

import argparse
import importlib.util
import logging
import os
import socket
import sys
from contextlib import suppress
from tempfile import TemporaryDirectory

from model_tools.chat import add_model_arguments, opening_system
from model_tools.checkpoints.model_folder import require, resolve_model
from model_tools.checkpoints.precision import precision_of
from sft.core.errors import UserError
from sft.core.language import _
from sft.core.verbs import add_language

LOADS = "PyTorch and Transformers"

HOST = "127.0.0.1"
# A question is text: as much as this fills the context of any model here several times over.
LONGEST_BODY = 4 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1 (7860); 0 takes a free one")
    add_language(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns its exit code."""
    _require_gradio()
    named = resolve_model(arguments.model, arguments.adapter)
    with open_port(arguments.port) as listening, TemporaryDirectory() as files, suppress(KeyboardInterrupt):
        require(named)
        # Both read their switches when they are imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": files}
        from model_tools.chatting.conversation import ChatModel
        from model_tools.chatting.page import build_page

        system = opening_system(named, arguments.system)
        print(precision_of(named, arguments.bits).line, file=sys.stderr)
        model = ChatModel(named, arguments.bits, arguments.max_new_tokens)
        try:
            serve_page(build_page(model, named, system), listening)
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


def serve_page(page, listening: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    import gradio
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from model_tools.chatting.gate import Gate
    from model_tools.chatting.page import FONTS, STYLE

    port = listening.getsockname()[1]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, max_body_size=LONGEST_BODY)
    # A page of somebody else's that resolves its own name to 127.0.0.1 is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(Gate)
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
    # An open page holds a connection; that Ctrl-C cuts it off is no news, and uvicorn would report it with a traceback.
    logging.getLogger("uvicorn.error").addFilter(lambda _record: not server.should_exit)
    print(f"http://{HOST}:{port}  ({_('Ctrl-C ends it')})", flush=True)
    server.run(sockets=[listening])


def _require_gradio() -> None:
    """See that Gradio is installed, without the seconds that importing it takes.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("Gradio is not installed: python -m pip install -r requirements-web.txt")
