"""An HTTP proxy of the tests' own in front of a server: it counts requests, and delays, fails or cuts them at will."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_PIECE = 1 << 16


@dataclass(frozen=True)
class Request:
    """What a client has asked for."""

    method: str
    path: str
    range: str = ""
    body_bytes: int = 0

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.path


Rule = Callable[[Request], bool]


def every(request: Request) -> bool:
    return True


def reads(request: Request) -> bool:
    return request.method == "GET" and not request.is_list


def writes(request: Request) -> bool:
    return request.method in ("PUT", "POST")


@dataclass
class Fault:
    """What happens to some of the requests, until ``times`` of them were hit.

    Attributes:
        rule: which requests.
        status: answer this status instead of asking the server.
        cut_after: send so many bytes of the answer's body, then close the connection.
        lose_answer: let the server do it, then close the connection without an answer.
        delay: wait so many seconds first.
        drop_header: leave this header out.
        corrupt: flip a bit in the middle of the answer's body.
        times: how many requests it hits.
    """

    rule: Rule = every
    status: int = 0
    cut_after: int | None = None
    lose_answer: bool = False
    delay: float = 0
    drop_header: str = ""
    corrupt: bool = False
    times: int = 1 << 60
    hits: int = 0


@dataclass
class Proxy:
    """A running proxy: its address, what it was asked, and what it does wrong."""

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.hits < fault.times and fault.rule(request):
                    fault.hits += 1
                    return fault
        return None

    @contextmanager
    def faulty(self, **how: object) -> Iterator[Fault]:
        """Do something wrong while the block runs."""
        fault = Fault(**how)  # type: ignore[arg-type]  # the fields of Fault
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    @contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """Collect the requests that are made while the block runs."""
        found: list[Request] = []
        before = len(self.requests)
        yield found
        found += self.requests[before:]


@contextmanager
def proxy_to(endpoint: str) -> Iterator[Proxy]:
    """Run a proxy in front of a server while the block does."""
    upstream = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.upstream = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=120)

        def finish(self) -> None:
            self.upstream.close()
            super().finish()

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone
                self.close_connection = True

        def forward(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else b""
            request = Request(self.command, self.path, self.headers.get("Range") or "", size)
            fault = proxy.fault_for(request) or Fault()
            time.sleep(fault.delay)
            if fault.status:
                self.answer(fault.status, b"<Error><Code>InternalError</Code></Error>")
                return
            self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != fault.drop_header.lower():
                    self.upstream.putheader(name, value)
            self.upstream.endheaders(body)
            with self.upstream.getresponse() as response:
                content = response.read()
            if fault.lose_answer:
                self.cut()
                return
            if fault.corrupt and content:
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            if response.status != 204:
                self.send_header("Content-Length", length or "0")
            self.end_headers()
            if fault.cut_after is not None:
                self.wfile.write(content[: fault.cut_after])
                self.cut()
                return
            self.wfile.write(content)

        def answer(self, status: int, content: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def cut(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.forward)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256  # many processes may connect at once

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
