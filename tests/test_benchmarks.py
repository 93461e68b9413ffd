"""Benchmarks without a GPU and without timing: scripts start, and the pages show the results files."""

import json
import os
import subprocess
import sys

from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import document
from common.results import argument_parser, gpu_results_path, machine, write
from gpu.run import Run

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.rglob("*.py") if '__name__ == "__main__"' in path.read_text())

# Runs every script with --help in a process of its own, forked from one that has imported torch already.
# The fork has no module and no path of this repository, as a new interpreter in the same folder.
START = """
import os, runpy, sys, traceback
import torch, transformers
for script in sys.argv[2:]:
    print("script:", script, flush=True)
    if (child := os.fork()) == 0:
        sys.argv = [script, "--help"]
        sys.path[0] = os.path.dirname(script)
        status = 1
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print("status:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_every_script_answers_help_from_any_folder(tmp_path):
    assert len(SCRIPTS) >= 12
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRITON_INTERPRET")}
    command = [sys.executable, "-W", "ignore", "-c", START, "scripts", *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    outputs = result.stdout.split("script: ")[1:]
    for script, output in zip(SCRIPTS, outputs, strict=True):
        assert "usage:" in output and "status: 0" in output, f"{script}: {output}\n{result.stderr}"


def test_scripts_import_this_tree():
    """Each script puts its repository on the path before it imports anything of it."""
    for script in SCRIPTS:
        lines = script.read_text().splitlines()
        imports = ("import nanoemox", "from nanoemox", "from common", "from cpu", "from gpu", "import common")
        first = next((i for i, line in enumerate(lines) if line.startswith(imports)), len(lines))
        path = next((i for i, line in enumerate(lines) if line.startswith("sys.path")), len(lines))
        assert path < first or first == len(lines), script


def test_pages_are_what_the_results_say():
    for path, text in document.pages().items():
        assert path.read_text() == text, (
            f"{path.name} differs: run benchmarks/document.py, edit no page by hand"
        )


def test_a_changed_result_changes_the_page(tmp_path):
    results = json.loads(document.newest_gpu_run().read_text())
    row = next(row for row in results["rows"] if row["step"] == "op")
    row["device_us"]["ours"] = 4321.0
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(results))
    assert "4321.0" in document.gpu_page(changed)
    assert "4321.0" not in document.gpu_page(document.newest_gpu_run())


def test_sections_of_the_cpu_page_have_titles_of_their_own():
    titles = [line for line in document.cpu_page().splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles)) >= 7


def test_every_cpu_result_is_on_the_page():
    names = {path.stem for path in (document.RESULTS / "cpu").glob("*.json")}
    assert names == set(document.CPU_RESULTS)


def test_results_say_where_they_come_from():
    origin = machine("abc")
    assert origin["commit"] == "abc" and origin["machine"] and origin["torch"]
    for path in document.RESULTS.rglob("*.json"):
        if "-trials-" in path.name:
            continue
        results = json.loads(path.read_text())
        assert {"machine", "torch", "commit"} <= results["from"].keys() and results["rows"], path.name


def test_results_have_the_fields_of_the_pages():
    for name in document.CPU_RESULTS:
        rows = json.loads((document.RESULTS / "cpu" / f"{name}.json").read_text())["rows"]
        assert all("case" in row and len(row) > 1 for row in rows), name
    run = json.loads(document.newest_gpu_run().read_text())
    assert {"driver", "triton", "date"} <= run["from"].keys()
    assert {"bandwidth", "matmul"} <= run["ceilings"].keys()
    fields = {"op": {"floor_us", "device_us", "call_us"}, "encoder": {"floor_ms", "ms", "over_floor"}}
    for step, names in fields.items():
        rows = [row for row in run["rows"] if row["step"] == step]
        assert rows, step
        for row in rows:
            assert names | {"name", "batch"} <= row.keys(), row


def test_page_of_a_new_run(tmp_path):
    """document.py reads what `Run` writes."""
    origin = machine("abc") | {"machine": "Card", "driver": "580", "date": "2026-01-02"}
    run = Run(tmp_path / "run.json", origin, 9, tmp_path)
    run.ceilings = {"bandwidth": 3e12, "matmul": 8e14}
    run.add({"step": "tests", "name": "tests/ops", "ok": False, "output": "FAILED test_x.py"})
    times = {"call_us": {"ours": 20.0}, "device_us": {"ours": 4.0}}
    run.add({"step": "op", "name": "expert_gate", "batch": 1, "ok": True, "floor_us": 2.0, **times})
    times = {"ms": {"fast": 3.0}, "over_floor": {"fast": 2.0}}
    run.add({"step": "encoder", "name": "vision", "batch": 1, "floor_ms": 1.5, **times})
    page = document.gpu_page(tmp_path / "run.json")
    for text in (
        "# Measured on Card",
        "commit abc, 2026-01-02; copy 3000 GB/s",
        "Checks: 1 of 2 passed.",
        "- failed: tests tests/ops FAILED test_x.py",
        "| op | batch | floor | ours |",
        "| expert_gate | 1 | 2.0 | 4.0 (20) |",
        "| vision | 1 | 1.50 |  |  | 3.00 (2.00) |  |",
    ):
        assert text in page, page


def test_written_results(tmp_path):
    args = argument_parser("A script.").parse_args(["--results", str(tmp_path / "new" / "rows.json")])
    write(args.results, [{"case": "one"}], {"machine": "Card"}, correct=True)
    results = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert results == {"from": {"machine": "Card"}, "correct": True, "rows": [{"case": "one"}]}
    write(args.results, [{"case": "two"}])
    results = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert results["rows"] == [{"case": "two"}] and results["from"] == machine()


def test_trials_are_no_run():
    assert "trials" not in document.newest_gpu_run().name
    assert document.newest_gpu_run().name >= "NVIDIA-H100-80GB-HBM3-2026-11-27.json"
    assert gpu_results_path("NVIDIA H100 80GB HBM3").name.startswith("NVIDIA-H100-80GB-HBM3-20")
