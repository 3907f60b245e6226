"""The folder of fetched files: one process a file, what can be dropped, and what a person keeps there."""

import fcntl
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from esbnn_core.checkpoint.fetch import checkpoint_cache, downloaded, drop, fetch
from tests.helpers.server import DATA, SHA256, Server, entry, names, refused, server

__all__ = ["server"]  # fixture


@pytest.mark.parametrize("folder", ["/dev/null", "/proc/esbnn"])
def test_a_folder_that_cannot_be_made_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("ESBNN_CACHE", folder)
    told = refused(server.url, checkpoint_cache())
    assert told.startswith(f"{folder}/checkpoints, the folder for downloads, cannot be made (No")
    assert told.endswith(": let ESBNN_CACHE name another") and server.asked == []


def test_a_fetched_file_that_cannot_be_read_is_dropped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    # a connection that is cut looks like the end where nobody says how long the file is
    server.stop, server.length = 100, False
    path = fetch(server.url, checkpoint_cache())
    assert path.read_bytes() == DATA[:100]
    assert drop(str(path)) and names(checkpoint_cache()) == []
    assert not drop(path)
    server.stop = 0
    assert fetch(server.url, checkpoint_cache()).read_bytes() == DATA and server.asked == ["", ""]


def test_nothing_else_is_dropped(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    folder = checkpoint_cache()
    (folder / "more").mkdir(parents=True)
    fetched = fetch(server.url, tmp_path).name  # beside the cache folder
    kept = [tmp_path / fetched, fetch(entry(server), folder)]  # this one's sha256 is known
    kept += [folder / "es_tiny.pth", folder / "more" / fetched, folder / f"{fetched}.0123456789ab.part"]
    for path in kept[2:]:
        path.write_bytes(b"by hand")
    (folder / fetched).symlink_to(kept[0])
    kept += [folder / fetched, folder / f"0123456789abcdef-{folder.name}"]
    kept[-1].mkdir()
    assert not any(drop(path) for path in kept) and all(path.exists() for path in kept)
    assert not drop(folder) and not drop(folder / "gone")


def test_a_file_system_without_locks_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(handle: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without)
    assert "cannot be locked ([Errno 38] Function not implemented)" in refused(entry(server), tmp_path)


def test_two_do_not_fetch_one_file_but_each_its_own(server: Server, tmp_path: Path) -> None:
    asked, goes_on, done = threading.Event(), threading.Event(), []
    server.pause = lambda: (asked.set(), goes_on.wait(30))
    first = threading.Thread(target=lambda: done.append(fetch(server.url, tmp_path)))
    first.start()
    try:
        assert asked.wait(30)
        server.pause = lambda: None
        for _ in range(2):  # the one that is refused takes no lock away
            assert f"another process is fetching {server.url}: wait for it" in refused(server.url, tmp_path)
        locks = [path for path in tmp_path.iterdir() if path.suffix == ".lock"]
        assert len(locks) == 1
        other = fetch(entry(server), tmp_path)
        assert other.read_bytes() == DATA
    finally:
        goes_on.set()
        first.join()
    assert done[0].read_bytes() == DATA and names(tmp_path) == sorted([done[0].name, other.name])
    # that of a process that was killed is not held
    done[0].unlink()
    locks[0].touch()
    assert fetch(server.url, tmp_path) == done[0] and names(tmp_path) == sorted([done[0].name, other.name])


def test_a_lock_that_was_removed_locks_nobody_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, seen = fcntl.flock, []

    def late(handle: IO[bytes], operation: int) -> None:
        """The process before ends between the opening and the locking, the first time."""
        if not seen:
            for path in tmp_path.glob(".*.lock"):
                path.unlink()
        seen.append(handle)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    there: list[str] = []
    server.pause = lambda: there.extend(name for name in names(tmp_path) if name.endswith(".lock"))
    path = fetch(server.url, tmp_path)
    assert len(seen) == 2 and len(there) == 1 and names(tmp_path) == [path.name]


def test_a_page_for_people_is_named_and_not_opened(server: Server, tmp_path: Path) -> None:
    message = refused(entry(server, access="page"), tmp_path)
    assert f"can only be downloaded from a web page: open {server.url} in a browser" in message
    assert message.endswith(f"evaluate PATH --entry es_tiny, or keep it as {tmp_path}/es_tiny.pth")
    assert server.asked == [] and names(tmp_path) == []


def test_what_a_person_downloaded_is_found_by_its_name(server: Server, tmp_path: Path) -> None:
    page = entry(server, access="page")
    (tmp_path / "es_tiny_other.pth").write_bytes(b"another")
    (tmp_path / "es_tiny.pth.tar").write_bytes(DATA)
    assert fetch(page, tmp_path) == tmp_path / "es_tiny.pth.tar"
    assert f"es_tiny.pth.tar must have sha256 {'0' * 64}, got {SHA256}" in refused(
        replace(page, sha256="0" * 64), tmp_path
    )
    for ending in ("part", "crdownload", "download"):  # of Firefox, Chrome and Safari, while they are at it
        (tmp_path / f"es_tiny.pth.{ending}").write_bytes(DATA[:10])
        assert downloaded(page, tmp_path) == [tmp_path / "es_tiny.pth.tar"]
        (tmp_path / f"es_tiny.pth.{ending}").unlink()
    (tmp_path / "es_tiny.pth").write_bytes(DATA)
    assert "is there twice" in refused(page, tmp_path)
    assert len(names(tmp_path)) == 3 and server.asked == []


def test_the_cache_lies_beside_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    assert checkpoint_cache() == tmp_path / "checkpoints"
