"""Commands in processes of their own, forked from one that has imported the packages."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any

import torch
import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    # the last one keeps what the others import out of every child's search for garbage
    ["torch", "esbnn_core.lit.cli", "tasks.classification.module", "tasks.classification.data", "tests.helpers.frozen"]
)


class Child:
    """`python WORDS` as subprocess.Popen has it: a process with its own folder, variables and output files.

    Args:
        words: The interpreter, which is not started, then -m MODULE or -c CODE, then the arguments.
        out: The file that its output is added to.
        err: The file that its errors are added to.
        cwd: Its folder, by default that of this process.
        env: All its variables, by default those of this process.
    """

    def __init__(
        self, words: Sequence[str], out: Path, err: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        arguments = (list(words[1:]), str(cwd or Path.cwd()), dict(os.environ if env is None else env))
        self.process: BaseProcess = CONTEXT.Process(target=_run, args=(*arguments, str(out), str(err)))
        self.process.start()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; after `timeout` seconds it is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        assert code is not None
        return code

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


def run(
    words: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 280,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> "CompletedProcess[str]":
    """As subprocess.run(words, text=True) with its output captured, or added to the files that are given."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(stdout.name if stdout else f"{folder}/out")
        err = Path(stderr.name if stderr else f"{folder}/err")
        code = Child(words, out, err, cwd, env).wait(timeout)
        return CompletedProcess(list(words), code, out.read_text(), err.read_text())


def run_child(
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: IO[bytes] | None = None,
    turn: object = None,
) -> int:
    """As esbnn_core.lit.children.run_child, forked; without a log what it prints is lost."""
    return run([sys.executable, *words], cwd, env, stdout=log, stderr=log).returncode


def start(worker: Callable[..., None], number: int, *arguments: Any) -> None:
    """Run worker(rank, *arguments) in `number` processes, as torch.multiprocessing.spawn does.

    They fork from one that has imported what `worker` needs, once for all.
    """
    torch.multiprocessing.start_processes(_fork, (worker, number, arguments), 1, start_method="forkserver")


def _fork(_: int, worker: Callable[..., None], number: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # no thread is lost by forking
    torch.multiprocessing.start_processes(worker, arguments, number, start_method="fork")


def _run(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    # a forkserver's child has its loaders start a forkserver of their own, which imports everything anew
    multiprocessing.set_start_method("fork", force=True)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    kind, what, *rest = words
    sys.argv = [what, *rest]
    sys.path[:0] = [part for part in env.get("PYTHONPATH", "").split(os.pathsep) if part]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c", words
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
