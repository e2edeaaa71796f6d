"""Stands before Gradio's server: lets through what the chat page needs, asked by that page or by no browser, no more.

In: an ASGI application, and requests. Out: its answers under a content security policy, or a refusal. Knows nothing
about models or chats.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from sft.core.language import _

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# The browser itself refuses what Gradio's page, or an answer in it, might fetch from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# Of Gradio's seventy routes those that the page asks for: a release that adds one does not open it here.
ROUTES = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(?:assets|static|svelte)/[^:\\]*"
        r"|/gradio_api/(?:startup-events|heartbeat/\w+|queue/data)"
    ),
    "POST": re.compile(r"/gradio_api/(?:queue/join|run/predict|cancel|reset)/?"),
}


class Gate:
    """An ASGI application that refuses what is not the page's own, before the one behind it reads a byte of it."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; a websocket, of which the page needs none, is closed."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await (_refusal(scope) or self.app)(scope, receive, send_with_policy)


def _refusal(scope: Message) -> PlainTextResponse | None:
    """Why a request goes no further; None where it may."""
    headers, path = Headers(scope=scope), scope["path"]
    route = ROUTES.get("GET" if scope["method"] == "HEAD" else scope["method"])
    if not (route and route.fullmatch(path)):
        return PlainTextResponse(str(_("no such page")), 404)
    if _is_from_elsewhere(headers, is_page=path == "/"):
        return PlainTextResponse(str(_("asked for by another site")), 403)
    return None


def _is_from_elsewhere(headers: Headers, *, is_page: bool) -> bool:
    """Whether another site's page asks; it may link to the page itself. What is no browser sends neither header."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{headers.get('host')}":
        return True
    return not is_page and headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
