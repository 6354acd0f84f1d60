"""Peers that read a model in a form of their own, which their own tools export from the folder, once.

Each is best at whole answers, so what is timed is told by its callback of tokens: to the first one is a prompt's
time, from there on are the steps of one token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from runners import CONTEXT


def exported(folder: Path, export: Callable[[Path], None]) -> Path:
    """A folder that `export` fills under a name of its own first, so that half of one is never taken for whole."""
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        export(part)
        part.rename(folder)
    return folder


def run_module(*words: object) -> None:
    """Run a module of this Python without a network. Raises RuntimeError with the end of what it said."""
    command = [sys.executable, "-m", *map(str, words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-500:]}")


class OpenVino:
    """OpenVINO GenAI on an export by optimum-intel."""

    def __init__(self, folder: Path, threads: int, kind: str, scratch: Path) -> None:
        import openvino
        import openvino_genai

        weights = {"float32": "fp32", "int8": "int8"}[kind]
        words = ("optimum.commands.optimum_cli", "export", "openvino", "--model", folder, "--task",
                 "text-generation-with-past", "--weight-format", weights)  # fmt: skip
        model = exported(scratch / f"openvino-{kind}", lambda target: run_module(*words, target))
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if kind == "float32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        self._genai, self._tensor = openvino_genai, openvino.Tensor
        self._pipe = openvino_genai.LLMPipeline(str(model), "CPU", **options)
        precision = "float32" if kind == "float32" else "in the precision that it prefers"
        self.name = "OpenVINO"
        version = openvino_genai.__version__
        self.settings = (
            f"OpenVINO GenAI {version}, {weights} weights, computes {precision}, {threads} threads"
        )
        self.token = -1
        genai = openvino_genai

        class Clock(genai.StreamerBase):  # type: ignore[misc,name-defined]
            """Notes when each token comes."""

            def __init__(self) -> None:
                super().__init__()
                self.times: list[float] = []
                self.tokens: list[int] = []

            def write(self, token: Any) -> Any:
                found = token if isinstance(token, list) else [token]
                self.times += [time.perf_counter()] * len(found)
                self.tokens += found
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                return

        self._clock = Clock

    def _write(self, ids: list[int], count: int) -> tuple[float, list[float]]:
        """(when it began, when each of `count` tokens came)."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        array, clock = np.array([ids], np.int64), self._clock()
        inputs = self._genai.TokenizedInputs(self._tensor(array), self._tensor(np.ones_like(array)))
        started = time.perf_counter()
        self._pipe.generate(inputs, config, clock)
        self.token = clock.tokens[-1]
        return started, clock.times

    def prefill(self, ids: list[int]) -> float:
        started, times = self._write(ids, 1)
        return times[0] - started

    def decode(self, ids: list[int], count: int) -> float:
        _, times = self._write(ids, count + 1)
        return times[-1] - times[0]


class OnnxRuntime:
    """ONNX Runtime GenAI on an export by its model builder; int8 with integer products (accuracy level 4)."""

    def __init__(self, folder: Path, threads: int, kind: str, scratch: Path) -> None:
        import onnxruntime_genai

        precision = {"float32": "fp32", "int8": "int8"}[kind]

        def export(target: Path) -> None:
            words = (
                "onnxruntime_genai.models.builder",
                "-m",
                folder,
                "-o",
                target,
                "-p",
                precision,
                "-e",
                "cpu",
            )
            run_module(*words, "-c", scratch / "onnx-cache")

        model = exported(scratch / f"onnx-{kind}", export)
        config = onnxruntime_genai.Config(str(model))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=CONTEXT, min_length=CONTEXT, do_sample=False)
        self._generator = onnxruntime_genai.Generator(self._model, parameters)
        self.name = "ONNX Runtime"
        self.settings = f"ONNX Runtime GenAI {onnxruntime_genai.__version__}, {precision}, {threads} threads"
        self.token = -1
        self._read: list[int] = []

    def prefill(self, ids: list[int]) -> float:
        self._generator.rewind_to(0)
        self._read = []
        started = time.perf_counter()
        self._generator.append_tokens(ids)
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int) -> float:
        if self._read != ids:
            self.prefill(ids)
            self._read = list(ids)
        else:
            self._generator.rewind_to(len(ids) - 1)
            self._generator.append_tokens(ids[-1:])
        self._generator.generate_next_token()  # chooses the first, of logits that are there
        started = time.perf_counter()
        for _ in range(count):
            self._generator.generate_next_token()
        seconds = time.perf_counter() - started
        self.token = int(self._generator.get_next_tokens()[0])
        return seconds


class CTranslate2:
    """CTranslate2 on its own conversion of the folder."""

    def __init__(self, folder: Path, threads: int, kind: str, scratch: Path) -> None:
        import ctranslate2

        def export(target: Path) -> None:
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(folder)).convert(str(target), quantization=kind)

        model = exported(scratch / f"ctranslate2-{kind}", export)
        self._model = ctranslate2.Generator(
            str(model), compute_type=kind, intra_threads=threads, inter_threads=1
        )
        self._tokens = json.loads((model / "vocabulary.json").read_text(encoding="utf-8"))
        self.name = "CTranslate2"
        self.settings = (
            f"CTranslate2 {ctranslate2.__version__}, {self._model.compute_type}, {threads} threads"
        )
        self.token = -1

    def _write(self, ids: list[int], count: int, known: int) -> tuple[float, list[float]]:
        """(when it began, when each of `count` tokens came); the state of the first `known` ids is kept."""
        words = [self._tokens[token] for token in ids]
        times: list[float] = []
        tokens: list[int] = []

        def told(step: Any) -> bool:
            times.append(time.perf_counter())
            tokens.append(step.token_id)
            return False

        started = time.perf_counter()
        self._model.generate_batch(
            [words[known:]], static_prompt=words[:known] or None, max_length=count, min_length=count,
            sampling_topk=1, include_prompt_in_result=False, callback=told,
        )  # fmt: skip
        self.token = tokens[-1]
        return started, times

    def prefill(self, ids: list[int]) -> float:
        started, times = self._write(ids, 1, 0)
        return times[0] - started

    def decode(self, ids: list[int], count: int) -> float:
        _, times = self._write(ids, count + 1, len(ids) - 1)
        return times[-1] - times[0]
