"""A proxy before an S3 server that loses connections and answers with errors when it is told to."""

import http.client
import http.server
import socket
import threading
from collections.abc import Callable


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """Passes requests on to the S3 server behind it, until `fault` says what becomes of a request instead.

    `fault(number, method, path)` is called with the number of the request, from 1, and returns None, a status such as
    503, "reset" (the connection is cut before an answer) or "cut" (in the middle of the answer).
    """

    def __init__(self, target: str) -> None:
        self.fault: Callable[[int, str, str], int | str | None] = lambda number, method, path: None
        self.requests = 0
        self.faults = 0
        self._target = target.removeprefix("http://")
        self._lock = threading.Lock()
        self._port = free_port()
        self._server: http.server.ThreadingHTTPServer | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, also again after a stop, on the same port."""
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def do_GET(self) -> None:
                proxy.handle(self)

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

            def log_message(self, *words: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def stop(self) -> None:
        """An outage: nobody listens any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """One request: pass it on, or do what the fault says."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self.requests += 1
            fault = self.fault(self.requests, request.command, request.path) if self._server else "reset"
            self.faults += fault is not None
        if fault == "reset":
            self._cut(request)
            return
        if isinstance(fault, int):
            self._answer(request, fault, [("Content-Type", "application/xml")], _ERROR[fault])
            return
        connection = http.client.HTTPConnection(self._target, timeout=60)
        connection.request(request.command, request.path, body, dict(request.headers.items()))
        answer = connection.getresponse()
        data = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
        if request.command == "HEAD":
            kept.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        self._answer(request, answer.status, kept, data, cut=fault == "cut")
        connection.close()

    def _answer(
        self, request: http.server.BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes,
        cut: bool = False,
    ) -> None:  # fmt: skip
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        if request.command != "HEAD":
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            request.wfile.flush()
            self._cut(request)

    def _cut(self, request: http.server.BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.connection.shutdown(socket.SHUT_RDWR)


_HOP_BY_HOP = ("content-length", "transfer-encoding", "connection", "date", "server")
_ERROR = {
    403: b"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>wrong secret</Message></Error>",
    500: b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>try again</Message></Error>",
    503: b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>",
}
