"""Answer HEAD as GET, without the body: monitors and load balancers ask so."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Heads:
    """Lets every route that answers GET answer HEAD (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body"})
            raise _AnsweredError  # what would still come, be it for ever, is not asked for

        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, send_head)
        except* _AnsweredError:
            pass
        finally:
            scope["route"] = asked.get("route")  # by which it is counted


class _AnsweredError(Exception):
    """The head is sent."""
