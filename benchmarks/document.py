"""`python benchmarks/document.py`: writes docs/benchmarks-cpu.md and docs/benchmarks-gpu.md from
benchmarks/results.

Nobody types a figure: tests/test_benchmarks.py compares the pages with what this script writes. A result of a
    CPU is
named after its script (language.json, or answer-fp32.json with an option of it), whose docstring heads its
table. The page of a GPU is made of the newest whole run of gpu_check."""

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
# Results of CPU scripts in the order of the page; what stands behind a dash heads the table too.
_CPU_RESULTS = ("language", "answer", "answer-fp32", "parity", "quality", "peak", "endurance")
_CPU_HEAD = """# Measured on a CPU

Shares and ratios carry over to other machines, seconds do not. Each figure is a median over rounds in which
all forms, and a probe of the memory's bandwidth, took turns in one process. `benchmarks/document.py` writes
this page from benchmarks/results/cpu.
"""

Row = dict[str, Any]


def cpu_page() -> str:
    return "\n".join([_CPU_HEAD, *map(_cpu_section, _CPU_RESULTS)])


def _cpu_section(name: str) -> str:
    results = json.loads((RESULTS / "cpu" / f"{name}.json").read_text())
    script, _, option = name.partition("-")
    docstring = ast.get_docstring(ast.parse((HERE / "cpu" / f"{script}.py").read_text())) or ""
    summary, *paragraphs = docstring.split("\n\n")
    title = summary.replace("\n", " ").split(": ", 1)[1].rstrip(".")
    title = title[0].upper() + title[1:] + (f", in {option}" if option else "")
    command = f"`python benchmarks/cpu/{script}.py{f' --dtype {option}' if option else ''}`"
    text = [f"## {title}", "", f"{command}. " + " ".join(paragraphs).replace("\n", " ")]
    by_columns: dict[tuple[str, ...], list[Row]] = {}
    for row in results["rows"]:
        by_columns.setdefault(tuple(row), []).append(row)
    for columns, rows in by_columns.items():
        text += ["", "| " + " | ".join(column.replace("_", " ") for column in columns) + " |"]
        text += ["|---" * len(columns) + "|"]
        text += ["| " + " | ".join(_shown(row[column]) for column in columns) + " |" for row in rows]
    source = results["from"]
    packages = [
        f"{package} {source[package]}" for package in ("torch", "transformers") if source.get(package)
    ]
    text += ["", f"{source['machine']}; {', '.join(packages)}; commit {source['commit']}."]
    return "\n".join(text) + "\n"


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def newest_gpu_run() -> Path:
    """The newest results of gpu_check; trials lie beside them under names of their own."""
    runs = [path for path in RESULTS.glob("*.json") if "-trials-" not in path.name]
    return max(runs, key=lambda path: json.loads(path.read_text())["from"]["date"])


def gpu_page(path: Path) -> str:
    return "\n".join(_gpu_lines(json.loads(path.read_text()))) + "\n"


def _gpu_lines(results: Row) -> Iterator[str]:
    source, ceilings, rows = results["from"], results["ceilings"], results["rows"]
    yield f"# Measured on {source['machine']}\n"
    yield "These are not RTX 4090 numbers.\n"
    yield (
        f"Driver {source['driver']}, torch {source['torch']}, Triton {source['triton']}, "
        f"commit {source['commit']}, {source['date']}; "
        f"copy {ceilings['bandwidth'] / 1e9:.0f} GB/s, bf16 matmul "
        f"{ceilings['matmul'] / 1e12:.0f} TFLOP/s. `benchmarks/document.py` writes this page.\n"
    )
    yield from _checks(rows)
    yield "## Ops: device us with a cold L2 (call us)\n"
    yield from _ops(rows)
    yield "\n## Encoders: ms (times the floor)\n"
    yield from _encoders(rows)


def _checks(rows: list[Row]) -> Iterator[str]:
    judged = [row for row in rows if "ok" in row]
    if judged:
        yield f"Checks: {sum(row['ok'] for row in judged)} of {len(judged)} passed.\n"
    for row in judged:
        if not row["ok"]:
            failed = [line for line in row.get("output", "").splitlines() if line.startswith("FAILED")]
            yield f"- failed: {row['step']} {row['name']} {'; '.join(failed)[:300]}\n"


def _ops(rows: list[Row]) -> Iterator[str]:
    """Columns that nothing was measured for are left out."""
    ops = [row for row in rows if row["step"] == "op"]
    titles = {
        "ours": "ours",
        "eager": "eager",
        "compiled": "compiled",
        "compiled folded": "folded, compiled",
    }
    forms = [form for form in titles if any(form in row["device_us"] for row in ops)]
    yield f"| op | batch | floor | {' | '.join(titles[form] for form in forms)} |"
    yield "|---|---|---|" + "---|" * len(forms)
    for row in ops:
        cells = " | ".join(_op_cell(row, form) for form in forms)
        yield f"| {row['name']} | {row['batch']} | {row['floor_us']:.1f} | {cells} |"


def _op_cell(row: Row, form: str) -> str:
    if form not in row["device_us"]:
        return ""
    return f"{row['device_us'][form]:.1f} ({row['call_us'][form]:.0f})"


def _encoders(rows: list[Row]) -> Iterator[str]:
    yield "| part | batch | floor | eager | compiled | fast | fast, CUDA graph |"
    yield "|---|---|---|---|---|---|---|"
    for row in (row for row in rows if row["step"] == "encoder"):
        cells = [
            f"{row['ms'][form]:.2f} ({row['over_floor'][form]:.2f})" if form in row["ms"] else ""
            for form in ("eager", "compiled", "fast", "fast graph")
        ]
        yield f"| {row['name']} | {row['batch']} | {row['floor_ms']:.2f} | {' | '.join(cells)} |"


def pages() -> dict[Path, str]:
    """Every page that this script writes, and its text."""
    return {DOCS / "benchmarks-cpu.md": cpu_page(), DOCS / "benchmarks-gpu.md": gpu_page(newest_gpu_run())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for path, text in pages().items():
        path.write_text(text)
        print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
