"""Depth stacking: a deeper model whose blocks are those of another, repeated in order.

The `G_stack` operator of "Stacking Your Transformers" (Du et al. 2024, arXiv:2405.15319): blocks 0 to n - 1 follow
each other `times` times; what stands before and after them (embedding, final norm, head) is there once. It works
on the names of tensors alone, so on every architecture whose blocks are numbered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tinylm.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from tinylm.errors import CheckpointError, ParameterError
from tinylm.sources.write import (
    TensorSource,
    check_room,
    copy_companions,
    new_folder,
    write_json,
    write_safetensors,
)

SHARD_BYTES = 4 * 2**30
"""A folder with more weights than this is written in files of at most so many bytes."""

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""The keys of config.json that count the blocks."""


@dataclass(frozen=True)
class Stacked:
    """What was written: the folder, the blocks before and after, the parameters before and after."""

    folder: Path
    layers: tuple[int, int]
    parameters: tuple[int, int]


def stack(
    source: str | Path,
    folder: str | Path,
    times: int,
    progress: Callable[[int, int], None] | None = None,
) -> Stacked:
    """Write the model folder `source` to `folder`, its blocks `times` times after each other.

    Tensor by tensor from the memory map, so that nothing is held in memory; tokenizer and other files go along.
    `progress(done, total)` is called in bytes written. Raises CheckpointError for a source whose blocks cannot be
    told, SourceError if `folder` is there or cannot be written, ParameterError for fewer than 2 times.
    """
    if isinstance(times, bool) or not isinstance(times, int) or times < 2:
        raise ParameterError(f"times is {times!r}; expected 2 or more")
    folder = Path(folder)
    with Checkpoint(source) as checkpoint:
        prefix, layers = find_blocks(checkpoint)
        names = stacked_names(list(checkpoint.tensors), prefix, layers, times)
        tensors = {
            name: TensorSource(
                name,
                checkpoint.tensors[old].dtype,
                tuple(checkpoint.tensors[old].shape),
                _read(checkpoint, old),
            )
            for name, old in names.items()
        }
        sizes = {name: checkpoint.tensors[old].nbytes for name, old in names.items()}
        config = stacked_config(checkpoint.config, layers, times)
        before = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
        check_room(folder, sum(sizes.values()))
        with new_folder(folder) as partial:
            copy_companions(Path(source), partial)
            write_json(partial / "config.json", config)
            _write(partial, tensors, sizes, progress)
    after = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return Stacked(folder, (layers, layers * times), (before, after))


def find_blocks(checkpoint: Checkpoint) -> tuple[str, int]:
    """(how the names of the blocks' tensors begin, how many blocks there are). Raises CheckpointError."""
    numbers: dict[str, set[int]] = {}
    for name in checkpoint.tensors:
        found = re.match(r"(.*?\.)?(0|[1-9]\d*)\.", name)
        if found:
            numbers.setdefault(found[1] or "", set()).add(int(found[2]))
    if len(numbers) != 1:
        shown = ", ".join(f"{prefix}N." for prefix in numbers) or "none"
        raise CheckpointError(
            f"{checkpoint.folder}: expected the tensors of one stack of blocks, found {shown}"
        )
    ((prefix, found_numbers),) = numbers.items()
    layers = len(found_numbers)
    if found_numbers != set(range(layers)):
        missing = min(set(range(max(found_numbers))) - found_numbers)
        raise CheckpointError(
            f"{checkpoint.folder}: there are blocks above {prefix}{missing}., but not that one"
        )
    return prefix, layers


def stacked_names(names: list[str], prefix: str, layers: int, times: int) -> dict[str, str]:
    """Names of the deeper model -> names of the source, in the order in which they are written.

    >>> stacked_names(["embed", "h.0.w", "h.1.w", "norm"], "h.", 2, 2)
    {'embed': 'embed', 'h.0.w': 'h.0.w', 'h.1.w': 'h.1.w', 'h.2.w': 'h.0.w', 'h.3.w': 'h.1.w', 'norm': 'norm'}
    """
    blocks: dict[int, list[str]] = {layer: [] for layer in range(layers)}
    outside: list[str] = []
    for name in names:
        found = re.match(re.escape(prefix) + r"(\d+)(\..*)", name)
        if found:
            blocks[int(found[1])].append(found[2])
        else:
            outside.append(name)
    first = next(i for i, name in enumerate(names) if name not in outside)
    inside = {
        f"{prefix}{layer}{rest}": f"{prefix}{layer % layers}{rest}"
        for layer in range(layers * times)
        for rest in blocks[layer % layers]
    }
    ahead = {name: name for name in outside if names.index(name) < first}
    return {**ahead, **inside, **{name: name for name in outside if name not in ahead}}


def stacked_config(config: dict[str, Any], layers: int, times: int) -> dict[str, Any]:
    """The config of the deeper model: its count of blocks, and every list that has an entry for each block."""
    keys = [key for key in LAYER_KEYS if key in config]
    if not keys:
        raise CheckpointError(f"config.json has none of {', '.join(LAYER_KEYS)}, which count the blocks")
    for key in keys:
        if config[key] != layers:
            raise CheckpointError(f"config.json: {key!r} is {config[key]!r}, but there are {layers} blocks")
    if config.get("use_sliding_window") and not config.get("layer_types"):
        raise CheckpointError("config.json: which blocks see a window alone must be said by 'layer_types'")
    changed: dict[str, Any] = dict.fromkeys(keys, layers * times)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == layers and "layer" in key:
            changed[key] = value * times
    return {**config, **changed}


def _write(
    folder: Path,
    tensors: dict[str, TensorSource],
    sizes: dict[str, int],
    progress: Callable[[int, int], None] | None,
) -> None:
    """The weights in one file, or in several with their index."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    total, before = sum(sizes.values()), 0
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE_FILE
        weight_map.update(dict.fromkeys(shard, file))

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(min(before + done, total), total)

        write_safetensors(folder / file, [tensors[name] for name in shard], report)
        before += sum(sizes[name] for name in shard)
    if len(shards) > 1:
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _read(checkpoint: Checkpoint, name: str) -> Callable[[], Iterator[NDArray[Any]]]:
    def parts() -> Iterator[NDArray[Any]]:
        yield checkpoint.array(name)
        checkpoint.release(name)

    return parts
