"""`python benchmarks/document.py RESULTS.json ...`: writes docs/benchmarks-cpu.md, of what --results wrote.

A file is named after its script (language.json, or language-fp32.json), whose first line heads its table.
"""

import argparse
import ast
import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks-cpu.md"
_HEAD = """# Measured on a CPU

Shares and ratios, not seconds, carry over to other machines: each is a median over rounds in which all forms, and a
probe of the memory's bandwidth, took turns in one process. Written by `benchmarks/document.py` from
benchmarks/results/cpu.
"""


def section(file: Path) -> str:
    found = json.loads(file.read_text())
    script = HERE / "cpu" / f"{file.stem.split('-')[0]}.py"
    about = (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n\n")
    title = about[0].split(": ", 1)[1].rstrip(".")
    lines = [
        f"## {title[0].upper()}{title[1:]}",
        "",
        f"`python benchmarks/cpu/{script.name}`. " + " ".join(about[1:]).replace("\n", " "),
    ]
    tables: dict[tuple[str, ...], list[dict]] = {}
    for row in found["rows"]:
        tables.setdefault(tuple(row), []).append(row)
    for keys, rows in tables.items():
        lines += [
            "",
            "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
            "|---" * len(keys) + "|",
        ]
        lines += ["| " + " | ".join(shown(row[key]) for key in keys) + " |" for row in rows]
    origin = found["from"]
    versions = ", ".join(f"{name} {origin[name]}" for name in ("torch", "transformers") if origin.get(name))
    return "\n".join([*lines, "", f"{origin['machine']}; {versions}; commit {origin['commit']}."]) + "\n"


def shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    args = parser.parse_args()
    PAGE.write_text("\n".join([_HEAD, *map(section, args.results)]))


if __name__ == "__main__":
    main()
