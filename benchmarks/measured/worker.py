"""A process that holds the device: asked for one thing after another, a line of JSON each.

Memory of the device is given back for certain only when its process ends, two frameworks do not
share one process well, and what hangs can only be ended from outside. So `gpu.py` itself never
touches the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What JAX, XLA and PyTorch say where memory ran out.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemoryError", "MemoryError")


class Failed(Exception):
    """Something that was asked for could not be done; the message is one line.

    `memory` tells whether it was for want of memory.
    """

    def __init__(self, message: str, memory: bool = False):
        super().__init__(message)
        self.memory = memory


class Worker:
    """A process that answers; see `serve`.

    Args:
      script: of this directory.
      log: takes what it prints.
      environment: variables beside those of this process.
    """

    def __init__(self, script: str, log: IO[str], environment: Mapping[str, str] | None = None):
        paths = [os.fspath(HERE.parent), os.fspath(ROOT), os.environ.get("PYTHONPATH", "")]
        given = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-u", os.fspath(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=os.environ | given,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)  # it has ended

    def send(self, call: str, **arguments: Any) -> None:
        """Ask for something, whose answer `receive` waits for."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, which `receive` says
            self._process.stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> Any:
        """Return the answer to what was asked first of what is unanswered.

        Raises:
          Failed: if it could not be done, the process has ended, or `seconds` have passed: the
            process is ended then.
        """
        try:
            line = self._answers.get(timeout=max(seconds, 0.1))
        except queue.Empty:
            self.end()
            raise Failed(f"no answer within {seconds:.0f} s") from None
        if line is None:
            code = self._process.wait()
            self._answers.put(None)  # for who asks again
            raise Failed(f"the process has ended with code {code}; its log says why")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], answer["memory"])
        return answer["found"]

    def ask(self, call: str, seconds: float, **arguments: Any) -> Any:
        """Ask for something and return the answer; see `receive`."""
        self.send(call, **arguments)
        return self.receive(seconds)

    @property
    def ended(self) -> bool:
        """Tell whether the process has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """End the process, which gives the device's memory back."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # it has ended
                self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer until nobody asks any more: the other end of `Worker`.

    Only answers go to the pipe; whatever libraries print goes to the log.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked, start = json.loads(line), time.perf_counter()
        try:
            answer: dict[str, Any] = {"found": functions[asked["call"]](**asked["arguments"])}
        except Exception as error:  # goes to who asked, who may want other things yet
            traceback.print_exc()
            answer = {"error": one_line(error), "memory": for_want_of_memory(error)}
        print(f"{asked['call']}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def one_line(error: BaseException) -> str:
    """Return what an error says, on a line of a bearable length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 200 else f"{said[:200]} ..."


def for_want_of_memory(error: BaseException) -> bool:
    """Tell whether the device, or the host, had too little memory for something."""
    said = f"{type(error).__name__}: {error}"
    return any(words.lower() in said.lower() for words in OUT_OF_MEMORY)
