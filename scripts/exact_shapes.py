#!/usr/bin/env python3
"""Runs the published models' exact shapes with random weights, against transformers, and prints a table.

For each model, one at a time: transformers writes a folder of random weights from a fixed seed and computes, in
float32, logits of a text of 256 tokens and 50 tokens taken greedily; tinylm loads the folder and must say the
same; the example of the model's card is run on it, by the command line and by the library. One model more is
kl3m-006's folder made four times as deep by `tinylm.stack`. Each step is a process of its own, so that its peak
memory is its own. Needs torch, transformers, 20 GB of memory and 10 GB of disk for the largest; a folder is
deleted before the next is written, unless `--folder` says where they stay, to be taken from there the next time.

    python scripts/exact_shapes.py                      all of them, as docs/exact-shapes.md shows
    python scripts/exact_shapes.py kl3m-002-170m        one
    python scripts/exact_shapes.py --folder shapes      all, in shapes/kl3m-002-170m and so on
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"

TEXT, PROMPT, NEW = 256, 16, 50
"""Tokens of the text whose logits are compared, of the prompt, and taken greedily."""

ROWS = 32
"""The last positions of a long text, whose logits are compared too."""

KL3M_006: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 131_072, "rope_theta": 100_000.0,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A published model: its config as published, the dtype of its file, what its card shows.

    prompt: of the card's example, or the messages of a chat; example: its parameters, under transformers' names.
    tokenizer: the fixture that stands in for its own, whose ids fit; template: a fixture likewise.
    type: what config.json calls it, where that is not transformers' name; architecture: how it is loaded then.
    head_beside: the file holds `lm_head.weight` as well as the tie. stacked: the model whose blocks it repeats.
    far: tokens of the long text.
    """

    config: dict[str, Any]
    dtype: str
    parameters: int
    prompt: str | list[dict[str, str]]
    example: dict[str, Any]
    tokenizer: str = "kl3m-002-170m"
    template: str | None = None
    type: str | None = None
    architecture: str | None = None
    shard_size: str = "20GB"
    head_beside: bool = False
    stacked: str | None = None
    far: int = 4096


def published_config(name: str) -> dict[str, Any]:
    """The config.json of a fixture."""
    config: dict[str, Any] = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
    return config


KL3M_007 = Model(
    {**KL3M_006, "num_hidden_layers": 120}, "bfloat16", 500_309_568, "The United States Constitution establishes",
    {"max_new_tokens": 100, "do_sample": True, "temperature": 0.8, "top_p": 0.95}, far=1024,
)  # fmt: skip

MODELS = {
    "kl3m-002-170m": Model(
        published_config("kl3m-002-170m"), "float32", 167_938_048, "Under this",
        {"do_sample": True, "temperature": 0.5, "num_return_sequences": 3, "max_new_tokens": 32},
    ),
    "kl3m-006-170m": Model(
        KL3M_006, "bfloat16", 181_700_928, "This Agreement is entered into as of",
        {"max_new_tokens": 100, "temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.15},
    ),
    "kl3m-006-170m-stacked": replace(KL3M_007, stacked="kl3m-006-170m"),
    "kl3m-007-500m": KL3M_007,
    "KeyLM-75M": Model(
        {
            "model_type": "qwen3", "hidden_size": 512, "num_hidden_layers": 24, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1280, "vocab_size": 12_020,
            "max_position_embeddings": 2048, "tie_word_embeddings": False,
        },
        "bfloat16", 75_251_200, "The three primary colors are",
        {"max_new_tokens": 40, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
        tokenizer="kl3m-004-char-4k-cased", type="keylm", architecture="qwen3", far=2048,
    ),
    "LRC-1.5B-SFT": Model(
        {
            "model_type": "llama", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 24,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "vocab_size": 128_256,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "rope_scaling": None, "tie_word_embeddings": True, "target_hidden_size": 1536, "use_aux_loss": True,
        },
        "bfloat16", 1_606_374_912,
        [
            {"role": "user", "content": "Hello, who are you?"},
            {"role": "assistant", "content": "Hello, I am an AI assistant."},
        ],
        {"max_new_tokens": 20}, template="llama3_2", shard_size="1GB", head_beside=True, far=512,
    ),
}  # fmt: skip


def text_ids(vocab_size: int, length: int = TEXT) -> list[int]:
    """(length,) random ids."""
    return [int(i) for i in np.random.RandomState(3).randint(0, vocab_size, length)]


def write(model: Model, folder: Path) -> dict[str, Any]:
    """By transformers: the folder, and what is expected of it, in `folder / "expected"`."""
    import torch
    from transformers import AutoModelForCausalLM

    if model.stacked is None:
        write_weights(model, folder)
    else:
        write_stacked(MODELS[model.stacked], folder)
    reference, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    reference.eval()
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"transformers misses or does not know tensors of {folder}: {report}")
    count = sum(parameter.numel() for parameter in reference.parameters())
    if count != model.parameters:
        raise SystemExit(f"{count} parameters, {model.parameters} are published")
    ids = text_ids(model.config["vocab_size"])
    greedy: list[int] = []
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[0].numpy()
        step = reference(torch.tensor([ids[:PROMPT]]), use_cache=True)
        for _ in range(NEW):
            greedy.append(int(step.logits[0, -1].argmax()))
            step = reference(
                torch.tensor([[greedy[-1]]]), past_key_values=step.past_key_values, use_cache=True
            )
        long = torch.tensor([text_ids(model.config["vocab_size"], model.far)])
        far = reference(long, logits_to_keep=ROWS).logits[0].numpy()
    (folder / "expected").mkdir()
    np.save(folder / "expected" / "logits.npy", logits)
    np.save(folder / "expected" / "far.npy", far)
    np.save(folder / "expected" / "precise.npy", in_float64(reference, ids))
    as_published(model, folder)
    return {"greedy": greedy, "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}


def write_weights(model: Model, folder: Path) -> None:
    """By transformers: a folder of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
    torch.manual_seed(20)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), dtype=getattr(torch, model.dtype)
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            # Unlike a fresh model's: no norm is 1, no bias 0, and attention has something to choose from.
            if parameter.dim() == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.3)
            else:
                parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)
    made.save_pretrained(folder, max_shard_size=model.shard_size)


def write_stacked(shallow: Model, folder: Path) -> None:
    """By transformers and `tinylm.stack`: a folder of four times as many blocks."""
    from tinylm.stack import stack

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source, target = Path(temporary) / "shallow", Path(temporary) / "deep"
        source.mkdir()
        write_weights(shallow, source)
        stack(source, target, 4)
        for file in target.iterdir():
            file.rename(folder / file.name)


def as_published(model: Model, folder: Path) -> None:
    """The folder in its published form: the old spelling of the config, a tokenizer, a head beside its tie.

    The weights are random, so any tokenizer whose ids fit says as much as the model's own.
    """
    config = {**model.config, "model_type": model.type or model.config["model_type"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in (FIXTURES / "tokenizers" / model.tokenizer).iterdir():
        if file.suffix == ".gz":
            (folder / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, folder / file.name)
    if model.template is not None:
        source = FIXTURES / "chat_templates" / f"{model.template}.jinja"
        shutil.copyfile(source, folder / "chat_template.jinja")
    if model.head_beside:
        from safetensors import safe_open
        from safetensors.torch import save_file

        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        name, file_name = "model.embed_tokens.weight", "model-head.safetensors"
        with safe_open(folder / index["weight_map"][name], "pt") as file:
            save_file({"lm_head.weight": file.get_tensor(name).clone()}, folder / file_name)
        index["weight_map"]["lm_head.weight"] = file_name
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def in_float64(model: Any, ids: list[int]) -> np.ndarray:
    """(T, V) float32: the logits computed in float64, to tell whose rounding a difference is."""
    import torch

    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):  # transformers computes these in float32 whatever comes

            def forward(x: Any, module: Any = module) -> Any:
                return (
                    module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
                )

            module.forward = forward
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].float().numpy()
    return logits


def load(model: Model, folder: Path) -> dict[str, Any]:
    """By tinylm: the seconds from the call to a model that is ready to run."""
    from tinylm.engine import Engine

    started = time.perf_counter()
    Engine.load(folder, architecture=model.architecture).compile()
    return {"load_seconds": time.perf_counter() - started}


def ours(model: Model, folder: Path) -> dict[str, Any]:
    """By tinylm: the same logits and tokens, with the peak of memory; and with keys and values in float16."""
    from tinylm.engine import Engine

    engine = Engine.load(folder, architecture=model.architecture)
    ids = text_ids(engine.vocab_size)
    sequence = engine.new_sequence()
    logits = engine.prefill(sequence, ids[:PROMPT])
    greedy = [int(logits.argmax())]
    while len(greedy) < NEW:
        greedy.append(int(engine.decode([sequence], [greedy[-1]])[0].argmax()))
    peak, own = memory()
    expected, precise = (np.load(folder / "expected" / f"{name}.npy") for name in ("logits", "precise"))
    found = engine.logits(ids)
    long, sequence = text_ids(engine.vocab_size, model.far), engine.new_sequence()
    engine.prefill(sequence, long[:-ROWS])
    far = engine.extend(sequence, long[-ROWS:])
    halves = Engine.load(folder, architecture=model.architecture, kv_dtype="float16")
    return {
        "greedy": greedy, "peak": peak, "own": own, "threads": engine.threads,
        "difference": distance(found, expected), "ours": distance(found, precise),
        "theirs": distance(expected, precise), "far": distance(far, np.load(folder / "expected" / "far.npy")),
        "halves": distance(halves.logits(ids), expected),
    }  # fmt: skip


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def memory() -> tuple[int, int]:
    """Bytes: the most that this process held so far, and what of it now is its own and no mapped file."""
    if sys.platform == "linux":
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, own = (int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon"))
        return peak, own
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0


def card(model: Model, folder: Path) -> dict[str, Any]:
    """The example of the model's card: by the library, and by the command line, which must write the same."""
    import tinylm

    example = {**model.example, "seed": 20} if model.example.get("temperature") else model.example
    lm = tinylm.load(folder, architecture=model.architecture)
    if not isinstance(model.prompt, str):
        answers = [lm.chat(model.prompt, **example), lm.chat(model.prompt[:1], **example)]
        words = ["--chat", model.prompt[0]["content"]]
        expected = [list(answers[1].ids)]
    else:
        answers = lm.generate_batch([model.prompt], **example)[0]
        words, expected = [model.prompt], [list(answer.ids) for answer in answers]
    for name, value in example.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    words += ["--architecture", model.architecture] if model.architecture else []
    done = subprocess.run(
        [sys.executable, "-m", "tinylm", "generate", *words, "--model", str(folder), "--json", "--quiet"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"tinylm generate {' '.join(words)}: {done.stderr}")
    if [one["ids"] for one in json.loads(done.stdout)["completions"]] != expected:
        raise SystemExit(f"tinylm generate {' '.join(words)}: not what the library writes")
    return {"tokens": [len(answer.ids) for answer in answers]}


STAGES = {"write": write, "load": load, "ours": ours, "card": card}


def run(name: str, folder: Path) -> dict[str, Any]:
    """All stages of a model, each in a process of its own -> its row of the table.

    What was written into the folder before is taken as it is.
    """
    written = folder / "expected" / "written.json"
    results: dict[str, dict[str, Any]] = {}
    loads = []
    if written.exists():
        results["write"] = json.loads(written.read_text(encoding="utf-8"))
    stages = ["load", "load", "load", "load", "ours", "card"]
    for stage in stages if results else ["write", *stages]:
        print(f"{name}: {stage}", file=sys.stderr, flush=True)
        words = [sys.executable, __file__, name, "--stage", stage, "--folder", str(folder)]
        done = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment()
        )
        results[stage] = json.loads(done.stdout.splitlines()[-1])
        if stage == "write":
            written.write_text(json.dumps(results[stage]), encoding="utf-8")
        if stage == "load":
            loads.append(results[stage]["load_seconds"])
    model, found = MODELS[name], results["ours"]
    same = sum(
        1 for one, other in zip(found["greedy"], results["write"]["greedy"], strict=True) if one == other
    )
    return {
        "model": name,
        "parameters": model.parameters,
        "stored": f"{model.dtype}, {results['write']['bytes'] / 1e9:.2f} GB",
        **{name: found[name] for name in ("difference", "ours", "theirs", "far", "halves")},
        "positions": model.far,
        "greedy": f"{same} of {NEW}",
        **{name: found[name] for name in ("peak", "own", "threads")},
        "load_seconds": float(np.median(loads[1:])),  # the first may have compiled a kernel
        "card_tokens": results["card"]["tokens"],
        "good": max(found["difference"], found["far"]) < 1e-4 and same == NEW,
    }


def environment() -> dict[str, str]:
    """The environment of a stage: this checkout's tinylm, and silence of transformers."""
    silence = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **silence, "PYTHONPATH": str(ROOT)}


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/exact-shapes.md."""
    titles = (
        "model", "parameters", "stored", "tinylm from transformers", "tinylm from float64",
        "transformers from float64", "at the end of a long text",
        "keys and values in float16", "50 greedy tokens", "load", "peak memory",
        "of it not mapped",
    )  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = (
            row["model"], f"{row['parameters']:,}", row["stored"], f"{row['difference']:.1e}",
            f"{row['ours']:.1e}", f"{row['theirs']:.1e}", f"{row['far']:.1e} ({row['positions']:,})",
            f"{row['halves']:.1e}", row["greedy"], f"{row['load_seconds']:.2f} s",
            f"{row['peak'] / 1e9:.2f} GB",
            f"{row['own'] / 1e9:.2f} GB",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the models that are named, all by default; 1 if one differs."""
    parser = argparse.ArgumentParser(description="Compare the published shapes with transformers.")
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"any of {', '.join(MODELS)}")
    parser.add_argument(
        "--folder", type=Path, help="where the folders are written and stay (default: a temporary place)"
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(STAGES[arguments.stage](MODELS[arguments.names[0]], arguments.folder)))
        return 0
    rows = []
    for name in arguments.names or MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.folder or Path(temporary)).resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            rows.append(run(name, folder))
        print(json.dumps(rows[-1]), flush=True)
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{table(rows)}"
    )
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
