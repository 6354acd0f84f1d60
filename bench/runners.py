"""tinylm and its peers behind one face: read a prompt, then write from a position, each timed in seconds.

A runner is called by its maker and number format: `tinylm int8`, `llama.cpp Q8_0`, `transformers bfloat16`. Those
that read an exported model stand in exported_runners.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
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
    """The engine of the project. A quantized folder is made once, and mapped as a user would."""

    def __init__(
        self, folder: Path, threads: int, dtype: str, scratch: Path | None = None, kv_dtype: str = "auto"
    ) -> None:
        from tinylm.engine import Engine
        from tinylm.formats.table import QUANTIZED
        from tinylm.measuring import Work

        if dtype in QUANTIZED and scratch is not None:
            folder = quantized_folder(folder, dtype, scratch)
        self.engine = Engine.load(folder, dtype=dtype, threads=threads, kv_dtype=kv_dtype)
        self.engine.compile()
        self.name = "tinylm"
        self.settings = (
            f"dtype {dtype}, {self.engine.threads} threads, keys and values {self.engine.kv_dtype}"
        )
        self.work = asdict(Work.of(self.engine.program, self.engine.kv_dtype))
        self.token = -1
        self._ready: dict[tuple[int, int], tuple[list[Any], list[int]]] = {}

    def prefill(self, ids: list[int]) -> float:
        sequence = self.engine.new_sequence()
        started = time.perf_counter()
        self.engine.prefill(sequence, ids)
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int) -> float:
        return self.together(ids, count, 1)

    def together(self, ids: list[int], count: int, sequences: int) -> float:
        """As `decode`, so many texts in each step."""
        key = len(ids), sequences
        if key not in self._ready:
            first = self.engine.new_sequence()
            token = int(self.engine.prefill(first, ids).argmax())
            self._ready[key] = (
                [first, *(self.engine.fork(first) for _ in range(sequences - 1))],
                [token] * sequences,
            )
        texts, tokens = self._ready[key]
        for text in texts:
            text.truncate(len(ids))
        started = time.perf_counter()
        for _ in range(count):
            tokens = self.engine.decode(texts, tokens).argmax(axis=-1).tolist()
        seconds = time.perf_counter() - started
        self.token = tokens[0]
        return seconds


def quantized_folder(folder: Path, dtype: str, scratch: Path) -> Path:
    """The folder that `tinylm quantize` makes of another, or that one where it is quantized already."""
    import json

    from tinylm.models.fields import QUANTIZATION_VERSION
    from tinylm.quantization import quantize_folder

    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return folder
    target = scratch / f"tinylm-{dtype}-{QUANTIZATION_VERSION}"
    return target if target.exists() else quantize_folder(folder, target, dtype)


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on a GGUF file of the same weights."""

    def __init__(self, folder: Path, threads: int, kind: str, scratch: Path) -> None:
        import llama_cpp
        from gguf_of_folder import quantize_gguf, write_gguf

        source, file = scratch / "F32.gguf", scratch / f"{kind}.gguf"
        if not source.exists():
            write_gguf(folder, source.with_suffix(".part")).rename(source)
        if not file.exists():
            quantize_gguf(source, file.with_suffix(".part"), kind).rename(file)
        self._model = llama_cpp.Llama(
            str(file), n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=True,
            verbose=False,
        )  # fmt: skip
        self._argmax = llama_cpp.llama_get_logits_ith
        self._vocab_size = self._model.n_vocab()
        self.name = "llama.cpp"
        self.settings = (
            f"llama-cpp-python {llama_cpp.__version__}, {kind}, {threads} threads, flash attention, batch 512,"
            " keys and values F16"
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
    """transformers on torch; int8 is torch's dynamic quantization of the linear layers."""

    def __init__(self, folder: Path, threads: int, dtype: str, scratch: Path | None = None) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.disable_progress_bar()
        self._torch = torch
        stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=stored).eval()
        if dtype == "int8":
            self._model = torch.ao.quantization.quantize_dynamic(
                self._model, {torch.nn.Linear}, dtype=torch.qint8
            )
            dtype = "float32, linear layers int8 (torch dynamic quantization)"
        self._cache_class = transformers.DynamicCache
        self.name = "transformers"
        self.settings = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, {dtype}, {threads} threads"
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


Maker = Callable[[Path, int, str, Path], Runner]


def makers() -> dict[str, Maker]:
    """Peer -> how a runner is made of (folder, threads, format, scratch); raises ImportError where it is missing."""
    import exported_runners as exported

    return {
        "tinylm": Tinylm,
        "llama.cpp": LlamaCpp,
        "transformers": Transformers,
        "OpenVINO": exported.OpenVino,
        "ONNX Runtime": exported.OnnxRuntime,
        "CTranslate2": exported.CTranslate2,
    }


def make(name: str, folder: Path, threads: int, scratch: Path, kv_dtype: str = "auto") -> Runner:
    """The runner `PEER FORMAT`, called so. kv_dtype: how tinylm stores keys and values."""
    peer, _, kind = name.rpartition(" ")
    if peer == "tinylm":
        runner: Runner = Tinylm(folder, threads, kind, scratch, kv_dtype)
    else:
        runner = makers()[peer](folder, threads, kind, scratch)
    runner.name = name
    return runner
