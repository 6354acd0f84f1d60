"""tinylm and its peers behind one face: read a prompt, then write from a position, each timed in seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CONTEXT = 2304
"""Positions that each is given room for."""


class Runner(Protocol):
    """A loaded model."""

    name: str
    settings: str
    token: int
    """The last one that `decode` chose, always the likeliest: all runners should agree."""

    def prefill(self, ids: list[int]) -> float:
        """Seconds to the logits after a whole prompt, from nothing."""

    def decode(self, ids: list[int], count: int) -> float:
        """Seconds for `count` further tokens, one at a time, after the ids have been read (which is not timed)."""


class Tinylm:
    """The engine of the project."""

    def __init__(self, folder: Path, threads: int, dtype: str) -> None:
        from tinylm.engine import Engine

        self.engine = Engine.load(folder, dtype=dtype, threads=threads)
        self.engine.compile()
        self.name = "tinylm"
        self.settings = f"dtype {dtype}, {self.engine.threads} threads"
        self.token = -1
        self._ready: dict[int, Any] = {}

    def prefill(self, ids: list[int]) -> float:
        sequence = self.engine.new_sequence()
        started = time.perf_counter()
        self.engine.prefill(sequence, ids)
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int) -> float:
        if len(ids) not in self._ready:
            sequence = self.engine.new_sequence()
            self._ready[len(ids)] = sequence, int(self.engine.prefill(sequence, ids).argmax())
        sequence, self.token = self._ready[len(ids)]
        sequence.truncate(len(ids))
        started = time.perf_counter()
        for _ in range(count):
            self.token = int(self.engine.decode([sequence], [self.token])[0].argmax())
        return time.perf_counter() - started


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on a GGUF file of the same weights in float32."""

    def __init__(self, folder: Path, threads: int, scratch: Path) -> None:
        import llama_cpp
        from gguf_of_folder import write_gguf

        file = write_gguf(folder, scratch / "model.gguf")
        self._model = llama_cpp.Llama(
            str(file), n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=True,
            verbose=False,
        )  # fmt: skip
        self._argmax = llama_cpp.llama_get_logits_ith
        self._vocab_size = self._model.n_vocab()
        self.name = "llama.cpp"
        self.settings = (
            f"llama-cpp-python {llama_cpp.__version__}, F32, {threads} threads, flash attention, batch 512"
        )
        self.token = -1
        self._read: list[int] = []
        self._first = -1

    def _next(self) -> int:
        logits = np.ctypeslib.as_array(self._argmax(self._model._ctx.ctx, -1), (self._vocab_size,))
        return int(logits.argmax())

    def prefill(self, ids: list[int]) -> float:
        self._model.reset()
        self._read = []
        started = time.perf_counter()
        self._model.eval(ids)
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int) -> float:
        if self._read != ids:
            self.prefill(ids)
            self._read, self._first = list(ids), self._next()
        self._model.n_tokens = len(ids)  # what lies behind is forgotten with the next evaluation
        self.token = self._first
        started = time.perf_counter()
        for _ in range(count):
            self._model.eval([self.token])
            self.token = self._next()
        return time.perf_counter() - started


class Transformers:
    """transformers on torch, float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.disable_progress_bar()
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._cache_class = transformers.DynamicCache
        self.name = "transformers"
        self.settings = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, float32, {threads} threads"
        )
        self.token = -1
        self._read: list[int] = []
        self._first = -1
        self._cache: Any = None

    def _step(self, ids: list[int]) -> int:
        with self._torch.inference_mode():
            output = self._model(
                self._torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        return int(output.logits[0, -1].argmax())

    def prefill(self, ids: list[int]) -> float:
        self._cache, self._read = self._cache_class(config=self._model.config), []
        started = time.perf_counter()
        self._first = self._step(ids)
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int) -> float:
        if self._read != ids:
            self.prefill(ids)
            self._read = list(ids)
        beyond = self._cache.get_seq_length() - len(ids)
        if beyond:
            self._cache.crop(-beyond)
        self.token = self._first
        started = time.perf_counter()
        for _ in range(count):
            self.token = self._step([self.token])
        return time.perf_counter() - started


def installed_runners(
    names: list[str], folder: Path, threads: int, dtype: str, scratch: Path
) -> list[Runner]:
    """tinylm and those of the peers that are asked for and installed."""
    makers = {
        "tinylm": lambda: Tinylm(folder, threads, dtype),
        "llama.cpp": lambda: LlamaCpp(folder, threads, scratch),
        "transformers": lambda: Transformers(folder, threads),
    }
    runners: list[Runner] = []
    for name in names:
        try:
            runners.append(makers[name]())
        except ImportError as error:
            print(f"{name}: not installed ({error})")
    return runners
