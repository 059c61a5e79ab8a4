"""What the page turns away that gradio would answer."""

import json
import math
import re

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


MAX_JSON_BYTES = 1 << 20  # of what a part of the page sends; pictures and videos are uploaded

# The paths that the page asks for, and the launch of it; gradio has fifty more, of parts that this page has not.
_FETCHED = re.compile(
    r"/(|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(assets|static|svelte)/.+|"
    r"gradio_api/(file=(?!\s*(?i:https?):).+|heartbeat/[^/]+|queue/data|upload_progress|app_id|startup-events))"
)
_UPLOAD = "/gradio_api/upload"
_MAX_FORM_BYTES = 1 << 16  # of an upload, around its file
_POSTED_JSON = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")


class OwnFilesOnly:
    """Turns away what the page itself does not ask for, JSON that is too large, uploads of more than one large file,
    and requests by which gradio would fetch a file from another server: to pass it on, or as an upload.

    Args:
        app: what answers the other requests.
        max_upload_bytes: largest file; gradio counts each file of an upload for itself.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int):
        self.app = app
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        answer = None
        if method == "POST" and path in _POSTED_JSON:
            body = await _read_body(Request(scope, receive))
            if body is None:
                answer = PlainTextResponse(f"this page takes JSON of at most {MAX_JSON_BYTES:,} bytes", 413)
            elif _names_another_server(body):
                answer = PlainTextResponse("this page takes its own files only", 403)
            else:
                receive = _replay(body, receive)
        elif method == "POST" and path == _UPLOAD:
            if _content_length(scope) > self.max_upload_bytes + _MAX_FORM_BYTES:
                answer = PlainTextResponse(f"this page takes uploads of at most {self.max_upload_bytes:,} bytes", 413)
        elif not (method in ("GET", "HEAD") and _FETCHED.fullmatch(path)):
            answer = PlainTextResponse("this page serves what it shows and no more", 403)
        await (answer or self.app)(scope, receive, send)


def _content_length(scope: Scope) -> float:
    """The size of a body, to which the server holds the sender; infinite where it is not announced, as browsers do."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else math.inf


async def _read_body(request: Request) -> bytes | None:
    """The body of a request, or `None` as soon as it has more bytes than JSON may have."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_JSON_BYTES:
            return None
    return bytes(body)


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
