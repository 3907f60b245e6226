"""Child processes of a command that trains: they end with it, or keep what they work in locked."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from esbnn_core.files import Turn

_LIVE: set[subprocess.Popen[bytes]] = set()
_ENDING = threading.Event()


def run_child(
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: IO[bytes] | None = None,
    turn: Turn | None = None,
) -> int:
    """Run `python WORDS` to its end; returns the exit code, negative for a signal.

    Args:
        words: after `python`.
        env: default this process's.
        cwd: default this process's.
        log: what the child prints goes there, default where this process prints.
        turn: in a folder, which the child keeps even where this process is killed.
    """
    handles = () if turn is None else (turn.handle,)
    command = [sys.executable, *words]
    with subprocess.Popen(command, env=env, cwd=cwd, stdout=log, stderr=log, pass_fds=handles) as child:
        _LIVE.add(child)
        if _ENDING.is_set():  # a thread of this process has started it since
            child.terminate()
        try:
            return child.wait()
        except SystemExit:  # of passes_sigterm_on, which has told the child: its end is waited for
            raise
        except BaseException:
            child.kill()
            raise
        finally:
            _LIVE.discard(child)


@contextmanager
def passes_sigterm_on() -> Iterator[None]:
    """Let SIGTERM end the children of run_child, and then this process with 143, as shells have it.

    Without it a child would train on after its command is gone, beside the child of the next one. For the main thread.
    """

    def stop(number: int, frame: object) -> None:
        _ENDING.set()
        for child in tuple(_LIVE):
            child.terminate()
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _ENDING.clear()
