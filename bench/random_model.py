"""A folder of random weights in the exact shape of a config: for speed, the numbers do not matter.

    python bench/random_model.py CONFIG FOLDER [--dtype bfloat16] [--architecture NAME]

CONFIG is a config.json, or a name of scripts/exact_shapes.py. Then `python bench/peers.py FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from tinylm.checkpoint import Checkpoint
from tinylm.formats.bfloat16 import narrow
from tinylm.models import architecture, layout
from tinylm.sources.write import TensorSource, write_safetensors

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
STORED = {"float32": "F32", "bfloat16": "BF16"}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a file, or a name of scripts/exact_shapes.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=STORED)
    parser.add_argument("--architecture", help="where the config names an unknown one")
    arguments = parser.parse_args()
    config, kind = read_config(arguments.config)
    write_random(config, arguments.folder, arguments.dtype, arguments.architecture or kind)


def read_config(name: str) -> tuple[dict[str, Any], str | None]:
    """(config, architecture where the config does not say it)."""
    if Path(name).is_file():
        return json.loads(Path(name).read_text(encoding="utf-8")), None
    sys.path.insert(0, str(SCRIPTS))
    from exact_shapes import MODELS

    if name not in MODELS:
        raise SystemExit(f"{name}: no file, and none of {', '.join(MODELS)}")
    return MODELS[name].config, MODELS[name].architecture


def write_random(config: dict[str, Any], folder: Path, dtype: str, kind: str | None = None) -> Path:
    """config.json and model.safetensors; matrices such that activations keep their size, norms about 1."""
    folder.mkdir(parents=True)
    empty = cast("Checkpoint", SimpleNamespace(folder=folder, config=config, tensors={}))
    module = architecture(config, kind)
    if module is None:
        raise SystemExit(f"model_type {config.get('model_type')!r} is unknown: give --architecture")
    shapes = layout.fit(empty, module).missing

    def maker(place: int, name: str, shape: tuple[int, ...]) -> Callable[[], Iterator[np.ndarray]]:
        def make() -> Iterator[np.ndarray]:
            random = np.random.default_rng(place)
            if len(shape) == 1:
                mean = np.float32(name.endswith("weight"))
                values = mean + np.float32(0.1) * random.standard_normal(shape, np.float32)
            else:
                values = random.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
            yield narrow(values) if dtype == "bfloat16" else values

        return make

    tensors = [
        TensorSource(name, STORED[dtype], shape, maker(place, name, shape))
        for place, (name, shape) in enumerate(shapes.items())
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
