"""Benchmarks as far as they need no GPU and no time: scripts start, pages say what the results say."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import document
from common.results import machine

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def start(script, folder):
    """A script's --help from any folder: its imports work, and it imports the tree, installed or not."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRITON_INTERPRET")}
    run = [sys.executable, str(ROOT / script), "--help"]
    return subprocess.run(run, capture_output=True, text=True, cwd=folder, env=env)


def test_every_script_starts(tmp_path):
    assert len(SCRIPTS) >= 12
    with ThreadPoolExecutor(2) as pool:
        for script, done in zip(
            SCRIPTS, pool.map(lambda script: start(script, tmp_path), SCRIPTS), strict=True
        ):
            assert done.returncode == 0, f"{script}: {done.stderr}"
            assert "usage:" in done.stdout, script


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


def test_results_say_where_they_come_from():
    source = machine("abc")
    assert source["commit"] == "abc" and source["machine"] and source["torch"]
    for path in (ROOT / "benchmarks" / "results").rglob("*.json"):
        if "-trials-" in path.name:
            continue
        results = json.loads(path.read_text())
        assert {"machine", "torch", "commit"} <= results["from"].keys() and results["rows"], path.name


@pytest.mark.parametrize("name", ["NVIDIA-H100-80GB-HBM3-2026-11-27.json"])
def test_trials_are_no_run(name):
    assert document.newest_gpu_run().name >= name and "trials" not in document.newest_gpu_run().name
