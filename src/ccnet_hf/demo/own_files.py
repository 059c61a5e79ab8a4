"""What the page turns away that gradio would answer."""

import json

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class OwnFilesOnly:
    """Turns away requests by which gradio would fetch a file from another server: to pass it on, or as an upload.

    Args:
        app: what answers the other requests.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        refused = "/proxy=" in path or "/file=http" in path
        if not refused and path.endswith("/queue/join"):
            request = Request(scope, receive)
            body = await request.body()
            refused = _names_another_server(body)
            receive = _replay(body, receive)
        if refused:
            await PlainTextResponse("this page takes and serves its own files only", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _names_another_server(body: bytes) -> bool:
    """Whether the JSON of an event holds a file whose path is an address."""
    try:
        nodes = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if str(node.get("path")).strip().lower().startswith(("http:", "https:")):
                return True
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """What receives a body that was read already, and then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
