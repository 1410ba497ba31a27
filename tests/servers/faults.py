"""Proxy in front of a server: it forwards requests, except those that a test makes fail."""

import http.client
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote

OF_ONE_CONNECTION = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "expect",
    "te",
    "trailer",
    "upgrade",
}
# Bytes of a body that are searched. GCS's multipart uploads name the object in the body, not in the URL.
NAMED_IN_BODY = 1000

Action = Literal["throttle", "unavailable", "cut", "drop", "lose", "gather"]
GATHERED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Answer:
    """Complete HTTP answer."""

    status: int
    content: bytes
    content_type: str


@dataclass
class Fault:
    """Fault of the next `times` requests that match.

    A request matches if its method is `method` ("*": any) and if `where` occurs in its unquoted URL or in the start of
    its body. With `every` = n, only each n-th matching request meets the fault. Actions:

    - `throttle`, `unavailable`: answer like a store that is called too often or has an internal error.
    - `drop`: close the connection without an answer.
    - `cut`: send half of the answer's body and close the connection.
    - `lose`: let the server do the work, then close the connection without an answer.
    - `gather`: hold the requests until all `times` of them have arrived; drop them if they do not arrive in time.

    The server never sees a request of `throttle`, `unavailable` or `drop`.
    """

    action: Action
    method: str
    where: str
    times: int
    every: int = 1
    fired: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        self._gathering = threading.Barrier(self.times, timeout=GATHERED_WITHIN_S) if self.action == "gather" else None

    def gathered(self) -> bool:
        """Wait for the other requests of a `gather`; return False if they do not arrive."""
        assert self._gathering is not None
        try:
            self._gathering.wait()
        except threading.BrokenBarrierError:
            return False
        return True

    def meets(self, method: str, text: str) -> bool:
        if self.fired >= self.times or self.method not in {method, "*"} or self.where not in text:
            return False
        self.seen += 1
        return self.seen % self.every == 0


@dataclass
class FaultyProxy:
    """Proxy on a free port of 127.0.0.1; its server starts with the first request that needs it.

    `start` starts the server and returns its port. `answers` holds the answers of the store for `throttle` and
    `unavailable`.
    """

    start: Callable[[], int]
    answers: Mapping[str, Answer] = field(default_factory=dict)

    dropped_headers: frozenset[str] = frozenset()
    """Headers, in lower case, that the server never sees, as if it did not know them."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._server_port: int | None = None
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.proxy = self
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), name="faulty-proxy", daemon=True).start()

    def server_port(self) -> int:
        with self._lock:
            if self._server_port is None:
                self._server_port = self.start()
            return self._server_port

    def inject(self, action: Action, method: str, where: str, times: int = 1, every: int = 1) -> Fault:
        """Add a fault and return it; its `fired` counts the requests that it met.

        If several faults match a request, the first added fault is used.
        """
        fault = Fault(action, method, where, times, every)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults.clear()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def fault_for(self, method: str, path: str, body: bytes) -> Fault | None:
        text = unquote(path) + "\n" + body[:NAMED_IN_BODY].decode("utf-8", errors="replace")
        with self._lock:
            for fault in self._faults:
                if fault.meets(method, text):
                    fault.fired += 1
                    return fault
        return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultyProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client disconnected, as killed workers do
            self.close_connection = True

    def relay(self) -> None:
        proxy = self.server.proxy
        body = read_body(self)
        fault = proxy.fault_for(self.command, self.path, body)
        action = fault.action if fault else None
        if action == "throttle" or action == "unavailable":
            answer = proxy.answers[action]
            self.reply(answer.status, [("Content-Type", answer.content_type)], answer.content)
        elif action == "drop" or (fault and action == "gather" and not fault.gathered()):
            self.hang_up()
        else:
            status, headers, content = self.ask_server(proxy.server_port(), body)
            if action == "lose":
                self.hang_up()
            else:
                self.reply(status, headers, content, cut=action == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = relay

    def ask_server(self, port: int, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in OF_ONE_CONNECTION | self.server.proxy.dropped_headers:
                connection.putheader(name, value)
        if self.command in {"PUT", "POST", "PATCH"} or body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in OF_ONE_CONNECTION]
        if self.command == "HEAD":
            headers.append(("Content-Length", response.getheader("Content-Length", "0")))
        connection.close()
        return response.status, headers, content

    def reply(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        pass


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Return the whole body of the current request, sent with a length or in chunks."""
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    chunks = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)
