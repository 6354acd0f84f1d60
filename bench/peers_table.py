"""The table of the README, of one run of `bench/peers.py` or of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

PEERS = ("tinylm", "llama.cpp", "transformers", "OpenVINO", "ONNX Runtime", "CTranslate2")
ORDER = ("decode", "prefill", "together", "peak")
FORMATS = ("float32", "bfloat16", "int8", "int4")


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """Settings, then a row for each case and format; a later run replaces what an earlier one found."""
    records = {(one["case"], one["name"]): one for run in runs for one in run["results"]}
    found = list(records.values())
    peers = [peer for peer in PEERS if any(peer_of(one) == peer for one in found)]
    machine = runs[0]["machine"]
    repeats = sorted({run["repeats"] for run in runs})
    lines = [
        f"{runs[0]['model']} on {machine['processor']}, {machine['threads']} threads, {machine['system']};"
        f" tokens a second, medians of {' or '.join(map(str, repeats))} rounds in turns.",
        "",
        "| | " + " | ".join(peers) + " | tinylm to the best |",
        "|---|" + "---|" * (len(peers) + 1),
        *rows(found, peers),
        "",
    ]
    settings = {name: text for run in runs for name, text in run["settings"].items()}
    lines += [f"- {name}: {text}" for name, text in settings.items()]
    left_out = {name: text for run in runs for name, text in run["left_out"].items() if name not in settings}
    lines += [f"- left out: {name} ({text})" for name, text in left_out.items()]
    return "\n".join(lines)


def peer_of(record: dict[str, Any]) -> str:
    """`llama.cpp F32` -> `llama.cpp`."""
    return str(record["name"]).rpartition(" ")[0]


def rows(found: list[dict[str, Any]], peers: list[str]) -> Iterator[str]:
    """A row for each case in each format, cases first."""

    def place(record: dict[str, Any]) -> tuple[int, int, int]:
        kind, _, length = record["case"].partition(" ")
        return ORDER.index(kind), int(length), FORMATS.index(record["format"])

    groups: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for record in sorted(found, key=place):
        groups.setdefault(place(record), []).append(record)
    for group in groups.values():
        cells = [cell([one for one in group if peer_of(one) == peer]) for peer in peers]
        unit = ", MB" if "bytes" in group[0] else ""
        yield f"| {group[0]['title']}, {group[0]['format']}{unit} | {' | '.join(cells)} | {best(group)} |"


def cell(records: list[dict[str, Any]]) -> str:
    """The figures of one peer; formats are named where there are several."""
    parts = []
    for one in records:
        text = f"{one['bytes'] / 1e6:.0f}" if "bytes" in one else rate(one["tokens_per_second"]["median"])
        if "share_of_limit" in one:
            share = one["share_of_limit"]
            limit = "of a float32 product's rate" if one["case"].startswith("prefill") else "of the memory"
            text = f"**{text}** ({100 * share['low']:.0f} to {100 * share['high']:.0f} % {limit})"
            if "times_one" in one:
                text = f"**{rate(one['tokens_per_second']['median'])}** ({one['times_one']:.1f} x one text)"
        parts.append(f"{one['name'].rpartition(' ')[2]} {text}" if len(records) > 1 else text)
    return ", ".join(parts)


def rate(value: float) -> str:
    """1,412 or 61.3."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def best(group: list[dict[str, Any]]) -> str:
    """How many times as good as the best peer tinylm is; for memory, how many times as much it takes."""
    others = [one for one in group if peer_of(one) != "tinylm"]
    ours = [one for one in group if peer_of(one) == "tinylm"]
    if not others or not ours:
        return ""
    if "bytes" in group[0]:
        return f"{ours[0]['bytes'] / min(one['bytes'] for one in others):.2f} x"
    fastest = max(others, key=lambda one: one["tokens_per_second"]["median"])
    return f"{fastest['tinylm_is']:.2f} x" if "tinylm_is" in fastest else ""
