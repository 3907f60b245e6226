"""Fetching a checkpoint from a server of this machine: whole, continued, refused; nothing is left that is not right."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from esbnn_core import InputError
from esbnn_core.checkpoint.catalogue import make_entry
from esbnn_core.checkpoint.fetch import fetch
from tests.helpers.catalogue import GIVEN
from tests.helpers.server import DATA, SHA256, Server, entry, names, refused, server

__all__ = ["server"]  # fixture


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "checkpoints"
    path = fetch(entry(server), folder)
    assert path.read_bytes() == DATA and names(folder) == [f"{SHA256}-es_net.pth.tar"] == [path.name]
    assert fetch(entry(server), folder) == path and server.asked == [""]


def test_an_address_alone_is_kept_by_its_own_name(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path)
    assert path.read_bytes() == DATA and path.name.endswith("-es_net.pth.tar")
    assert fetch(server.url, tmp_path) == path and server.asked == [""]
    other = fetch(server.url + "&v=2", tmp_path)
    assert other != path and len(names(tmp_path)) == 2


@pytest.mark.parametrize("known", [True, False])
def test_what_broke_off_goes_on_where_it_stopped(server: Server, tmp_path: Path, known: bool) -> None:
    source = entry(server) if known else server.url
    server.stop = 100_000
    assert "broke off (the connection ended after 100,000 of 300,000 bytes): run again" in refused(source, tmp_path)
    assert [name.endswith(".part") for name in names(tmp_path)] == [True]
    assert "after 200,000 of 300,000 bytes" in refused(source, tmp_path)
    server.stop = 0
    path = fetch(source, tmp_path)
    assert path.read_bytes() == DATA and names(tmp_path) == [path.name]
    assert server.asked == ["", "bytes=100000-", "bytes=200000-"]


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.stop, server.ranges = 100_000, False
    refused(entry(server), tmp_path)
    server.stop = 0
    path = fetch(entry(server), tmp_path)
    assert path.read_bytes() == DATA and names(tmp_path) == [path.name]


def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_one(server: Server, tmp_path: Path) -> None:
    server.stop = 100_000
    refused(server.url, tmp_path)
    server.stop, server.tag, server.data = 0, '"2"', bytes(300_000)
    path = fetch(server.url, tmp_path)
    assert path.read_bytes() == bytes(300_000) and names(tmp_path) == [path.name]


def test_a_file_that_became_shorter_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.stop = 100_000
    refused(server.url, tmp_path)
    server.stop, server.data = 0, DATA[:100]
    assert fetch(server.url, tmp_path).read_bytes() == DATA[:100] and server.asked[1:] == ["bytes=100000-", ""]


def test_without_a_version_nothing_is_kept_to_go_on_from(server: Server, tmp_path: Path) -> None:
    server.stop, server.tag = 100_000, ""
    assert refused(server.url, tmp_path).endswith(": run again")
    assert names(tmp_path) == []
    # a process that was killed could not take its part away: the file may be another one by now
    server.stop = 0
    path = fetch(server.url, tmp_path)
    (tmp_path / f"{path.name}.once.part").write_bytes(b"old" * 1000)
    path.unlink()
    assert fetch(server.url, tmp_path).read_bytes() == DATA and names(tmp_path) == [path.name]


@pytest.mark.parametrize("length", [True, False])
def test_a_wrong_size_leaves_nothing(server: Server, tmp_path: Path, length: bool) -> None:
    server.data, server.length = DATA + b"more", length
    assert "must have 300,000 bytes, got 300,004" in refused(entry(server), tmp_path)
    server.data, server.stop = DATA, 100_000
    assert ("broke off" if length else "must have 300,000 bytes, got 100,000") in refused(entry(server), tmp_path)
    server.data, server.stop = DATA[:-1], 0
    assert "must have 300,000 bytes, got 299,999" in refused(entry(server), tmp_path)
    assert names(tmp_path) == []


def test_no_more_is_read_than_shows_that_it_is_too_much(server: Server, tmp_path: Path) -> None:
    server.data, server.length = bytes(8 << 20), False
    assert re.search(r"got [123],\d{3},\d{3}: ", refused(entry(server), tmp_path))
    assert names(tmp_path) == []


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path, broken_off: bool) -> None:
    right = entry(server)
    if broken_off:
        server.stop = 100_000
        refused(right, tmp_path)
        server.stop = 0
    server.data = DATA[:-1] + b"\0"
    met = hashlib.sha256(server.data).hexdigest()
    assert f"{server.url} must have sha256 {SHA256}, got {met}" in refused(right, tmp_path)
    assert names(tmp_path) == []
    server.data = DATA
    assert fetch(right, tmp_path).read_bytes() == DATA


def test_a_file_that_was_damaged_in_the_cache_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    path = fetch(entry(server), tmp_path)
    path.write_bytes(b"\1" + DATA[1:])
    server.status = 404
    assert "HTTP 404" in refused(entry(server), tmp_path) and names(tmp_path) == []
    server.status = 200
    assert fetch(entry(server), tmp_path).read_bytes() == DATA and server.asked == ["", "", ""]


def test_refusals_of_the_server(server: Server, tmp_path: Path) -> None:
    server.status = 404
    assert "cannot be fetched (HTTP 404 Not Found): check the address" in refused(entry(server), tmp_path)
    server.status, server.kind = 200, "text/html; charset=utf-8"
    assert "answers with a page, not with a file" in refused(entry(server), tmp_path)
    gone = server.url
    server.http.shutdown()
    server.http.server_close()
    assert "cannot be fetched ([Errno" in refused(gone, tmp_path)
    assert names(tmp_path) == []


def test_an_error_keeps_what_is_there_already(server: Server, tmp_path: Path) -> None:
    server.stop = 100_000
    refused(entry(server), tmp_path)
    server.stop, server.status = 0, 503
    assert "HTTP 503" in refused(entry(server), tmp_path)
    server.status = 200
    assert fetch(entry(server), tmp_path).read_bytes() == DATA and server.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize("tag", ['"1"', ""])
def test_an_answer_of_nothing_is_no_file(server: Server, tmp_path: Path, tag: str) -> None:
    server.data, server.tag = b"", tag
    for server.length in (True, False):
        assert f"{server.url} answers with 0 bytes: check the address" in refused(server.url, tmp_path)
        assert names(tmp_path) == []
    server.data, server.status = DATA, 204
    assert f"{server.url} answers that it has no content (HTTP 204)" in refused(server.url, tmp_path)
    assert names(tmp_path) == []
    server.status = 200
    assert fetch(server.url, tmp_path).read_bytes() == DATA


def test_what_redirects_to_itself_is_one_sentence(server: Server, tmp_path: Path) -> None:
    server.to = server.url
    assert "cannot be fetched (HTTP 302 The HTTP server returned a redirect error" in refused(server.url, tmp_path)
    assert len(server.asked) > 1 and names(tmp_path) == []


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/es.pth", "es.pth", "http:///es.pth"])
def test_other_addresses_are_not_opened(tmp_path: Path, address: str) -> None:
    assert f"address must begin with http:// or https:// and a host, got {address}" in refused(address, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1/\u00e4.pth", "is not valid"),
        ("http://[abc/x.pth", "is not valid"),
        (f"http://{'a' * 70}.org/x.pth", "cannot be fetched"),
        ("http://127.0.0.1:99999/x.pth", "cannot be fetched"),
    ],
)
def test_an_address_that_cannot_be_is_one_sentence(tmp_path: Path, address: str, words: str) -> None:
    assert words in refused(address, tmp_path) and names(tmp_path) == []


def test_files_of_the_repository_are_checked_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "es.safetensors").write_bytes(DATA)
    given = {**GIVEN, "file": "es.safetensors", "sha256": SHA256, "bytes": len(DATA)}
    own = make_entry(given, "entry")
    assert fetch(own, tmp_path / "cache", files=tmp_path) == tmp_path / "es.safetensors"
    with pytest.raises(InputError, match=r"has no file .*gone\.safetensors"):
        fetch(replace(own, file="gone.safetensors"), tmp_path, files=tmp_path)
    with pytest.raises(InputError, match=rf"es\.safetensors must have sha256 {'0' * 64}, got {SHA256}"):
        fetch(replace(own, sha256="0" * 64), tmp_path, files=tmp_path)
    with pytest.raises(InputError, match="must have 12 bytes, got 300,000"):
        fetch(replace(own, bytes=12), tmp_path, files=tmp_path)
    assert names(tmp_path) == ["es.safetensors"]  # the repository's file stays
