"""A server on this machine that checkpoints are fetched from."""

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from esbnn_core import InputError
from esbnn_core.checkpoint.catalogue import Entry, make_entry
from esbnn_core.checkpoint.fetch import fetch
from tests.helpers.catalogue import GIVEN, LINKED

DATA = bytes(i * i % 251 for i in range(300_000))


SHA256 = hashlib.sha256(DATA).hexdigest()


class Server:
    """What a server answers with, and what it was asked for.

    Attributes:
        data: The file.
        tag: Its ETag, "" for none.
        ranges: Whether it sends the rest of a file.
        stop: After how many bytes of an answer it hangs up, 0 for never.
        length: Whether it sends the length of an answer.
        status: Of the answer.
        kind: Content-Type of the answer.
        to: Where it redirects to, "" for nowhere.
        pause: Called after the header.
        asked: The header Range of each request, "" for none.
    """

    def __init__(self) -> None:
        self.data, self.tag, self.ranges, self.stop, self.length = DATA, '"1"', True, 0, True
        self.status, self.kind, self.to = 200, "application/octet-stream", ""
        self.pause: Callable[[], object] = lambda: None
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/files/es%20net.pth.tar?download=1"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.headers.get("Range", ""))
        match = re.fullmatch(r"bytes=(\d+)-", self.asked[-1])
        start = int(match.group(1)) if match and self.ranges else 0
        if start and start >= len(self.data):
            return request.send_error(416)
        if self.to:
            request.send_response(302)
            request.send_header("Location", self.to)
            return request.end_headers()
        if self.status != 200:
            return request.send_error(self.status)
        request.send_response(206 if start else 200)
        request.send_header("Content-Type", self.kind)
        if self.tag:
            request.send_header("ETag", self.tag)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        if self.length:
            request.send_header("Content-Length", str(len(self.data) - start))
        request.end_headers()
        self.pause()
        with contextlib.suppress(ConnectionError):  # the other side has seen enough
            request.wfile.write(self.data[start : start + self.stop] if self.stop else self.data[start:])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def entry(server: Server, **changes: Any) -> Entry:
    whole = {**GIVEN, **LINKED, "url": server.url, "sha256": SHA256, "bytes": len(DATA)}
    return replace(make_entry(whole, "entry"), **changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(source: Entry | str, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        fetch(source, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)
