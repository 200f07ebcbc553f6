"""Whose jobs and pictures a page may show."""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr

COOKIE = "difflora_visitor"
LOCAL = "local"
_RULES = "HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000"  # Lax: it also comes with a link from a mail


def owner_of(request: gr.Request, *, is_shared: bool) -> str:
    """The owner of what a request asks for or brings: who is logged in; else, on a page that others reach,
    the browser; else whoever sits at this computer."""
    if request.username:
        return f"user {request.username}"
    if not is_shared:
        return LOCAL
    visitor = request.cookies.get(COOKIE)
    return f"browser {visitor}" if visitor else f"session {request.session_hash}"


class Visitors:
    """ASGI middleware that gives every browser a random name of its own, which no script can read."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes the request on; an answer to a browser without the cookie brings it."""
        if scope["type"] != "http" or COOKIE.encode() in dict(scope["headers"]).get(b"cookie", b""):
            await self.app(scope, receive, send)
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                cookie = f"{COOKIE}={secrets.token_urlsafe(24)}; {_RULES}"
                message = {**message, "headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
            await send(message)

        await self.app(scope, receive, answer)
