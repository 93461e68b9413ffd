"""The build modes, through the hooks that pip calls, in a process without torch."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from paths import ROOT

pytest.importorskip("setuptools", minversion="77")
HOOK = (
    "import sys; sys.modules['torch'] = None\n"
    "from setuptools import build_meta; print(build_meta.build_{}('dist'))"
)
FILES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "constraints.txt"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "nanoemox", "nanoemox_kernels"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.safetensors")
        )
    return folder


def build(tree, kind="wheel", **env):
    shutil.rmtree(tree / "build", ignore_errors=True)
    environment = {k: v for k, v in os.environ.items() if k != "CXX" and not k.startswith("NANOEMOX")} | env
    command = [sys.executable, "-c", HOOK.format(kind)]
    completed = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    name = completed.stdout.strip().splitlines()[-1] if completed.returncode == 0 else ""
    return completed, tree / "dist" / name


def libraries(wheel):
    return [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@pytest.mark.skipif(not shutil.which("c++") and not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_with_a_compiler_the_wheel_holds_the_library_and_is_of_the_platform(tree, mode):
    completed, wheel = build(tree, NANOEMOX_BUILD=mode)
    assert completed.returncode == 0, completed.stderr
    assert libraries(wheel) == ["nanoemox_kernels/libnanoemox_cpu.so"]
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert "CPU kernels for baseline" in completed.stderr


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"NANOEMOX_BUILD": "none"}, ""),
        ({"CXX": "/nowhere/c++"}, "without CPU kernels: no C++ compiler found"),
    ],
    ids=["none", "no compiler"],
)
def test_without_kernels_the_wheel_is_pure(tree, env, message):
    completed, wheel = build(tree, **env)
    assert completed.returncode == 0 and wheel.name.endswith("-py3-none-any.whl") and not libraries(wheel)
    assert {"nanoemox/train/configs/paper.yaml", "nanoemox/train/configs/demo.yaml"} <= set(
        zipfile.ZipFile(wheel).namelist()
    )
    assert message in completed.stderr


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"NANOEMOX_BUILD": "cpu", "CXX": "/nowhere/c++"}, "NANOEMOX_BUILD=cpu: no C++ compiler found"),
        ({"NANOEMOX_BUILD": "cpu", "CXX": "false"}, "NANOEMOX_BUILD=cpu: "),
        ({"NANOEMOX_BUILD": "cuda"}, "NANOEMOX_BUILD=cuda: there are no CUDA sources"),
        ({"NANOEMOX_BUILD": "gpu"}, "NANOEMOX_BUILD=gpu: want auto, none, cpu or cuda"),
    ],
    ids=["no compiler", "broken compiler", "cuda", "unknown"],
)
def test_a_request_that_cannot_be_met_stops_with_the_reason(tree, env, message):
    completed, _ = build(tree, **env)
    assert completed.returncode != 0 and message in completed.stderr


def test_the_source_distribution_carries_csrc(tree):
    completed, archive = build(tree, "sdist", NANOEMOX_BUILD="none")
    assert completed.returncode == 0, completed.stderr
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[ch]*") if path.is_file()}
    assert sources and sources <= names and {"setup.py", "LICENSE"} <= names
