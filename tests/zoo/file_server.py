"""A server on loopback that gives one file and misbehaves as it is told."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """Says nothing of clients that are gone, which may come to light while another test reads what was printed."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FileServer(LoopbackServer):
    """Serves `content` at any path and knows ranges.

    Attributes:
        content: the file.
        faults: what is wrong with the next answers, one each, then all is well: a status, `("cut", n)` to close the
            connection after n bytes of the body, `("pause", n, s)` to wait s seconds there, `"no range"` to give the
            whole file in any case, `"other range"`.
        states_size: whether it says how large the file is where nothing is left of it.
        ranges: the `Range` header of every request, or `None`.
    """

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.faults, self.ranges, self.states_size = content, [], [], True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/folder/{name}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        start = 0 if wanted is None or fault == "no range" else int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(server.content):
            self.send_response(416)
            if server.states_size:
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start += fault == "other range"
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        if isinstance(fault, tuple):
            self.wfile.write(body[: fault[1]])
            if fault[0] == "pause":
                self.wfile.flush()
                time.sleep(fault[2])
                self.wfile.write(body[fault[1] :])
        else:
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *arguments):
        pass
