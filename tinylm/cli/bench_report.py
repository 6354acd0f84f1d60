"""The figures of `tinylm bench` as Markdown: a table, and the receipt that goes before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinylm.cli.terminal import size

NOISY = 1.5
"""How many times the least bandwidth the most may be before the reader is told what that means."""


def markdown(found: dict[str, Any]) -> str:
    """What was found, for people; with a receipt where there is one."""
    lines = list(receipt_lines(found)) if "kernels" in found else [headline(found)]
    lines += ["", *table(found["results"]), "", *caption(found)]
    lines += [f"Left out: {one.get('test') or one['format']} ({one['reason']})." for one in found["left_out"]]
    if not found["complete"]:
        lines.append("Interrupted: this is not all that was asked for.")
    return "\n".join(lines)


def headline(found: dict[str, Any]) -> str:
    """Model, machine and version in one line."""
    machine = found["machine"]
    where = f"{found['model']} on {machine['processor']}, {machine['cores']} cores, {machine['system']}"
    return f"{where}, {version(found['tinylm'])}, {found['date']}"


def version(identity: dict[str, str | None]) -> str:
    """`tinylm 0.1.0 (commit 52dbf1405e3c, sources 9f86d081884c)`."""
    known = [f"{name} {identity[name]}" for name in ("commit", "sources") if identity[name]]
    return f"tinylm {identity['version']} ({', '.join(known)})"


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """A row for each format of weights and of keys and values, number of threads and test."""
    yield "| weights | cache | threads | test | tokens/s | does | memory gives | share |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in results:
        rate, memory = one["tokens_per_second"], one["memory"]
        spread = f"{number(rate['median'])} ({number(rate['min'])} to {number(rate['max'])})"
        if one["bytes_per_second"] is None:
            does = f"{one['operations_per_second'] / 1e9:.0f} GFLOP/s"
        else:
            does = f"{one['bytes_per_second'] / 1e9:.1f} GB/s"
        share = one["share"]
        part = "" if share is None else f"{100 * share['low']:.0f} to {100 * share['high']:.0f} %"
        gives = f"{memory['min'] / 1e9:.1f} to {memory['max'] / 1e9:.1f} GB/s"
        kind = f"{one['format']} | {one['kv_dtype']} | {one['threads']} | {one['test']}"
        yield f"| {kind} | {spread} | {does} | {gives} | {part} |"


def caption(found: dict[str, Any]) -> Iterator[str]:
    """What the columns mean, for who has never seen them; and whether the machine was steady."""
    results = found["results"]
    prompt = next((one for one in results if one["kind"] == "prompt"), None)
    written = max(
        (one for one in results if one["kind"] != "prompt"), key=lambda one: one["depth"], default=None
    )
    if prompt is not None:
        yield f"{prompt['test']}: a prompt of {prompt['tokens']:,} tokens is read."
    if written is not None:
        behind = f" behind {written['depth']:,} others" if written["depth"] else ""
        yield f"{written['test']}: {written['tokens']:,} tokens are written{behind}."
    rounds = f"{found['repeats']} rounds in turns" if found["repeats"] > 1 else "one round"
    yield f"tokens/s: the median (least to most) of {rounds}. cache: how keys and values are stored."
    yield "does: what is read of weights and cache in a second, or computed for a prompt."
    yield "memory gives: what as many threads could read right before and after each sample;"
    yield "share: of that, against the better and against the worse of the two."
    # as many threads everywhere: more of them read faster on a machine that is steady too
    alike = [one["memory"] for one in results if one["threads"] == results[0]["threads"]]
    least, most = min(one["min"] for one in alike), max(one["max"] for one in alike)
    if most > NOISY * least:
        yield (
            f"The memory gave {least / 1e9:.0f} to {most / 1e9:.0f} GB/s meanwhile (other work, heat):"
            " compare shares, and rows of one run, rather than tokens/s of different runs."
        )


def number(value: float) -> str:
    """Three figures or more: 7.42, 61.3, 1,412."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def receipt_lines(found: dict[str, Any]) -> Iterator[str]:
    """The receipt, to be pasted where Markdown is read."""
    machine, kernels, start = found["machine"], found["kernels"], found["start"]
    yield f"### tinylm bench --receipt, {found['date']}"
    yield f"- machine: {', '.join(machine_words(machine))}"
    packages = ", ".join(
        f"{name} {machine[name]}" for name in ("numpy", "numba", "llvmlite") if machine[name]
    )
    yield f"- system: {machine['system']}; Python {machine['python']}, {packages}"
    yield f"- {version(found['tinylm'])}"
    features = ", ".join(kernels["features"]) or "none of those that matter"
    yield (
        f"- kernels: for {kernels['cpu']} ({features}); int8 by {kernels['int8_product']},"
        f" {kernels['int8_lanes']} lanes"
    )
    yield f"- model: {found['model']}"
    for file in found["files"]:
        checksum = f", sha256 {file['sha256']}" if file["sha256"] else ""
        yield f"  - {file['name']}, {size(file['bytes'])}{checksum}"
    yield (
        f"- first text after the start of the process: {start['cold']:.2f} s without compiled kernels,"
        f" {start['warm']:.2f} s with them ({start['warm_min']:.2f} to {start['warm_max']:.2f})"
    )


def machine_words(machine: dict[str, Any]) -> Iterator[str]:
    """The machine, as far as it is known."""
    if machine["model"]:
        yield machine["model"]
    yield machine["processor"]
    if machine["performance_cores"] and machine["efficiency_cores"]:
        yield f"{machine['performance_cores']} performance and {machine['efficiency_cores']} efficiency cores"
    else:
        yield f"{machine['cores']} cores"
    if machine["memory"]:
        yield f"{machine['memory'] / 2**30:.0f} GiB of memory"
