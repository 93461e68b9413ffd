"""`python benchmarks/gpu/document.py RESULTS.json`: docs/benchmarks-gpu.md, out of a file of gpu_check."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines(found: dict[str, Any]) -> Iterator[str]:
    source, ceilings, rows = found["from"], found["ceilings"], found["rows"]
    yield f"# Measured on {source['machine']}\n"
    yield "These are not RTX 4090 numbers.\n"
    yield (
        f"Driver {source['driver']}, torch {source['torch']}, Triton {source['triton']}, commit {source['commit']}, "
        f"{source['date']}; copy {ceilings['bandwidth'] / 1e9:.0f} GB/s, bf16 matmul "
        f"{ceilings['matmul'] / 1e12:.0f} TFLOP/s. Made by `benchmarks/gpu/document.py`.\n"
    )
    yield from _checks(rows)
    yield "## Ops: device us with a cold L2 (call us)\n"
    yield from _ops(rows)
    yield "\n## Encoders: ms (times the floor)\n"
    yield from _encoders(rows)


def _checks(rows: list[dict[str, Any]]) -> Iterator[str]:
    judged = [row for row in rows if "ok" in row]
    if judged:
        yield f"Checks: {sum(row['ok'] for row in judged)} of {len(judged)} passed.\n"
    for row in judged:
        if not row["ok"]:
            failed = [line for line in row.get("output", "").splitlines() if line.startswith("FAILED")]
            yield f"- failed: {row['step']} {row['name']} {'; '.join(failed)[:300]}\n"


def _ops(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Columns that nothing was measured for are left out."""
    ops = [row for row in rows if row["step"] == "op"]
    names = {"ours": "ours", "eager": "eager", "compiled": "compiled", "compiled folded": "folded, compiled"}
    held = [name for name in names if any(name in row["device_us"] for row in ops)]
    yield f"| op | batch | floor | {' | '.join(names[name] for name in held)} |"
    yield "|---|---|---|" + "---|" * len(held)
    for row in ops:
        cells = " | ".join(_cell(row, name) for name in held)
        yield f"| {row['name']} | {row['batch']} | {row['floor_us']:.1f} | {cells} |"


def _encoders(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| part | batch | floor | eager | compiled | fast | fast, CUDA graph |"
    yield "|---|---|---|---|---|---|---|"
    for row in (row for row in rows if row["step"] == "encoder"):
        cells = [
            f"{row['ms'][name]:.2f} ({row['over_floor'][name]:.2f})" if name in row["ms"] else ""
            for name in ("eager", "compiled", "fast", "fast graph")
        ]
        yield f"| {row['name']} | {row['batch']} | {row['floor_ms']:.2f} | {' | '.join(cells)} |"


def _cell(row: dict[str, Any], name: str) -> str:
    return f"{row['device_us'][name]:.1f} ({row['call_us'][name]:.0f})" if name in row["device_us"] else ""


if __name__ == "__main__":
    text = "\n".join(lines(json.loads(Path(sys.argv[1]).read_text()))) + "\n"
    Path(__file__).parents[2].joinpath("docs", "benchmarks-gpu.md").write_text(text)
