"""Someone who uses the page as the browser does, over HTTP, in a session of their own."""

import json
import uuid
from pathlib import Path
from typing import Any

import httpx


_JSON = {"Content-Type": "application/json"}


class Refused(Exception):
    """The page did not do what was asked of it; what it said, if anything."""


class Visitor:
    """A session.

    Args:
        address: of the page.
    """

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=60, trust_env=False)
        self.session = uuid.uuid4().hex
        self.config = self.http.get("config").json()
        self.parts = {
            part["props"].get("elem_id"): part["id"] for part in self.config["components"] if "props" in part
        }

    def upload(self, file: Path) -> dict[str, Any]:
        """Upload a file; returns what gradio's components are told of it."""
        answer = self.http.post("gradio_api/upload", files={"files": (file.name, file.read_bytes())})
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}

    def trigger(self, part: str, event: str, data: list[Any], event_data: Any = None) -> dict[str, Any]:
        """What the page answers to an event of one of its parts: the values of its outputs by their elem_id. Raises
        Refused where it does not."""
        (function,) = (
            function
            for function in self.config["dependencies"]
            if [self.parts[part], event] in [list(target) for target in function["targets"]]
        )
        request = {"data": data, "fn_index": function["id"], "session_hash": self.session, "event_data": event_data}
        content = json.dumps(request)  # NaN and infinity, too
        self.http.post("gradio_api/queue/join", content=content, headers=_JSON).raise_for_status()
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    break
        names = {number: name for name, number in self.parts.items()}
        output = message["output"]
        if not message["success"]:
            raise Refused(output["error"])
        return dict(zip([names.get(number) for number in function["outputs"]], output["data"], strict=True))

    def segment(self, file: dict[str, Any] | None, checkpoint: str = "tiny") -> dict[str, Any]:
        """Choose a picture, as uploaded."""
        return self.trigger("chosen", "change", [file, checkpoint, 0.5])

    def fetch(self, file: dict[str, Any]) -> bytes:
        """A file that the page made."""
        answer = self.http.get(file["url"])
        answer.raise_for_status()
        return answer.content
