"""A runner in a process of its own, which may be another Python's: commands and answers are lines of JSON.

    python bench/worker.py NAME FOLDER THREADS SCRATCH KV_DTYPE

The first answer says how the runner is set, or what is missing. Standard output belongs to the answers alone;
whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class NotInstalledError(RuntimeError):
    """The peer is not there."""


class RemoteRunner:
    """A `Runner` whose work is done by another process. Raises NotInstalledError, or RuntimeError if that fails."""

    def __init__(
        self, name: str, python: str, folder: Path, threads: int, scratch: Path, kv_dtype: str = "auto"
    ) -> None:
        self.name, self.token = name, -1
        words = [python, str(HERE / "worker.py"), name, str(folder), str(threads), str(scratch), kv_dtype]
        searched = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, searched)),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONWARNINGS": "ignore",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self._log = (scratch / f"{name.replace(' ', '-')}.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        answer = self._answer()
        self.settings: str = answer["settings"]
        self.work: dict[str, int] | None = answer["work"]
        self.many: bool = answer["many"]

    def prefill(self, ids: list[int]) -> float:
        """As a Runner's."""
        return float(self._ask(do="prefill", ids=ids)["seconds"])

    def decode(self, ids: list[int], count: int) -> float:
        """As a Runner's."""
        return self._decoded(self._ask(do="decode", ids=ids, count=count))

    def together(self, ids: list[int], count: int, sequences: int) -> float:
        """As `Tinylm.together`; only where `many` says so."""
        return self._decoded(self._ask(do="together", ids=ids, count=count, sequences=sequences))

    def peak(self) -> int:
        """Bytes: the most memory that the process held so far."""
        return int(self._ask(do="peak")["bytes"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _decoded(self, answer: dict[str, Any]) -> float:
        self.token = answer["token"]
        return float(answer["seconds"])

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: the answer says so
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": "it ended without an answer"}
        if "missing" in answer:
            self.close()
            raise NotInstalledError(answer["missing"])
        if "failed" in answer:
            self.close()
            raise RuntimeError(f"{self.name}: {answer['failed']}")
        return answer


def main() -> None:
    """Make the runner, then do what the lines say until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    name, folder, threads, scratch, kv_dtype = sys.argv[1:]
    try:
        from runners import make

        runner: Any = make(name, Path(folder), int(threads), Path(scratch), kv_dtype)
        say(settings=runner.settings, work=getattr(runner, "work", None), many=hasattr(runner, "together"))
        for line in sys.stdin:
            command = json.loads(line)
            do = command.pop("do")
            if do == "peak":
                say(bytes=peak_memory())
            else:
                seconds = getattr(runner, do)(**command)
                say(seconds=seconds, token=runner.token)
    except ImportError as error:
        say(missing=str(error))
    except Exception as error:
        say(failed=f"{type(error).__name__}: {error}")
        raise


def peak_memory() -> int:
    """Bytes of the most that this process held, mapped files included."""
    try:  # on Linux, getrusage tells of the process that started this one too
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
