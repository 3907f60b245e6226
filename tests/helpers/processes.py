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
from typing import Any

import torch
import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "esbnn_core.lit.cli", "tasks.classification.module", "tasks.classification.data"]
)


class Child:
    """`python WORDS` as subprocess.Popen has it: a process with its own folder, variables and output files.

    Args:
        words: the interpreter, which is left out, then -m MODULE or -c CODE, then the arguments.
        cwd, env: its folder and all its variables, those of this process where they are not given.
        out, err: the files that its output is added to.
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
    **files: Any,
) -> "CompletedProcess[str]":
    """As subprocess.run(words, capture_output=True, text=True); stdout= and stderr= add to open files."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(getattr(files.get(name), "name", f"{folder}/{name}")) for name in ("stdout", "stderr"))
        code = Child(words, out, err, cwd, env).wait(timeout)
        return CompletedProcess(list(words), code, out.read_text(), err.read_text())


def start(worker: Callable[..., None], number: int, *arguments: Any) -> None:
    """Run worker(rank, *arguments) in `number` processes, as torch.multiprocessing.spawn does."""
    torch.multiprocessing.start_processes(worker, arguments, number, start_method="forkserver")


def _run(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
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
