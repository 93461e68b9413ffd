"""`python benchmarks/document.py`: writes docs/benchmarks-cpu.md and docs/benchmarks-gpu.md.

The figures come from benchmarks/results; tests/test_benchmarks.py compares the pages with what this script
writes. Results of a CPU have the name of their script, with a dtype after a dash if it is not the default
(answer-fp32.json); the docstring of the script heads their table. The page of a GPU shows the newest run of
gpu_check.
"""

import argparse
import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
# Results of CPU scripts, in the order of the page.
CPU_RESULTS = ("language", "answer", "answer-fp32", "parity", "quality", "peak", "endurance")
_CPU_HEAD = """# Measured on a CPU

Shares and ratios carry over to other machines, seconds do not. Each time is a median over rounds in which all
forms, and a probe of the memory bandwidth, took turns in one process. `benchmarks/document.py` writes this
page from `benchmarks/results/cpu`.
"""

Row = dict[str, Any]


def cpu_page() -> str:
    """The text of docs/benchmarks-cpu.md."""
    return "\n".join([_CPU_HEAD, *map(_cpu_section, CPU_RESULTS)])


def _cpu_section(name: str) -> str:
    """Title, command, description, tables and origin of one results file."""
    results = json.loads((RESULTS / "cpu" / f"{name}.json").read_text())
    script, _, dtype = name.partition("-")
    docstring = ast.get_docstring(ast.parse((HERE / "cpu" / f"{script}.py").read_text())) or ""
    summary, *paragraphs = docstring.split("\n\n")
    title = summary.replace("\n", " ").split(": ", 1)[1].rstrip(".")
    title = title[0].upper() + title[1:]
    command = f"python benchmarks/cpu/{script}.py"
    if dtype:
        title += f", in {dtype}"
        command += f" --dtype {dtype}"
    description = " ".join(paragraphs).replace("\n", " ")
    lines = [f"## {title}", "", _wrapped(f"`{command}`. {description}")]
    lines += _tables(results["rows"])
    lines += ["", _origin(results["from"]), ""]
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_on_hyphens=False, break_long_words=False)


def _tables(rows: list[Row]) -> Iterator[str]:
    """A table for each set of columns among the rows."""
    by_columns: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_columns.setdefault(tuple(row), []).append(row)
    for columns, rows_of_table in by_columns.items():
        yield ""
        yield "| " + " | ".join(column.replace("_", " ") for column in columns) + " |"
        yield "|---" * len(columns) + "|"
        for row in rows_of_table:
            yield "| " + " | ".join(_cell(row[column]) for column in columns) + " |"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _origin(origin: Row) -> str:
    packages = [package for package in ("torch", "transformers") if origin.get(package)]
    versions = ", ".join(f"{package} {origin[package]}" for package in packages)
    return f"{origin['machine']}; {versions}; commit {origin['commit']}."


def newest_gpu_run() -> Path:
    """The newest results of gpu_check. Files with "-trials-" in their name hold single experiments."""
    runs = [path for path in RESULTS.glob("*.json") if "-trials-" not in path.name]
    return max(runs, key=lambda path: json.loads(path.read_text())["from"]["date"])


def gpu_page(path: Path) -> str:
    """The text of docs/benchmarks-gpu.md from the results file `path`."""
    return "\n".join(_gpu_lines(json.loads(path.read_text()))) + "\n"


def _gpu_lines(results: Row) -> Iterator[str]:
    origin, ceilings, rows = results["from"], results["ceilings"], results["rows"]
    versions = f"Driver {origin['driver']}, torch {origin['torch']}, Triton {origin['triton']}"
    bandwidth, matmul = ceilings["bandwidth"] / 1e9, ceilings["matmul"] / 1e12
    yield f"# Measured on {origin['machine']}\n"
    yield "These are not RTX 4090 numbers.\n"
    yield _wrapped(
        f"{versions}, commit {origin['commit']}, {origin['date']}; copy {bandwidth:.0f} GB/s, bf16 matmul"
        f" {matmul:.0f} TFLOP/s. `benchmarks/document.py` writes this page."
    )
    yield ""
    yield from _checks(rows)
    yield "## Ops: device us with a cold L2 (call us)\n"
    yield from _ops(rows)
    yield "\n## Encoders: ms (times the floor)\n"
    yield from _encoders(rows)


def _checks(rows: list[Row]) -> Iterator[str]:
    """How many checks passed, and the checks that failed."""
    judged = [row for row in rows if "ok" in row]
    if judged:
        yield f"Checks: {sum(row['ok'] for row in judged)} of {len(judged)} passed.\n"
    for row in judged:
        if not row["ok"]:
            failed = [line for line in row.get("output", "").splitlines() if line.startswith("FAILED")]
            yield f"- failed: {row['step']} {row['name']} {'; '.join(failed)[:300]}\n"


# Implementation in the results -> title of its column.
_OP_FORMS = {
    "ours": "ours",
    "eager": "eager",
    "compiled": "compiled",
    "compiled folded": "folded, compiled",
}


def _ops(rows: list[Row]) -> Iterator[str]:
    """The table of the ops, without columns that have no figure."""
    ops = [row for row in rows if row["step"] == "op"]
    forms = [form for form in _OP_FORMS if any(form in row["device_us"] for row in ops)]
    yield f"| op | batch | floor | {' | '.join(_OP_FORMS[form] for form in forms)} |"
    yield "|---|---|---|" + "---|" * len(forms)
    for row in ops:
        cells = " | ".join(_op_cell(row, form) for form in forms)
        yield f"| {row['name']} | {row['batch']} | {row['floor_us']:.1f} | {cells} |"


def _op_cell(row: Row, form: str) -> str:
    if form not in row["device_us"]:
        return ""
    return f"{row['device_us'][form]:.1f} ({row['call_us'][form]:.0f})"


_ENCODER_FORMS = ("eager", "compiled", "fast", "fast graph")


def _encoders(rows: list[Row]) -> Iterator[str]:
    yield "| part | batch | floor | eager | compiled | fast | fast, CUDA graph |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        if row["step"] == "encoder":
            cells = " | ".join(_encoder_cell(row, form) for form in _ENCODER_FORMS)
            yield f"| {row['name']} | {row['batch']} | {row['floor_ms']:.2f} | {cells} |"


def _encoder_cell(row: Row, form: str) -> str:
    if form not in row["ms"]:
        return ""
    return f"{row['ms'][form]:.2f} ({row['over_floor'][form]:.2f})"


def pages() -> dict[Path, str]:
    """Path -> text of each page that this script writes."""
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
