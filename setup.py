"""Builds csrc/ into the package; everything else about the project is in pyproject.toml.

NANOEMOX_BUILD=auto (default): the CPU kernels where a C++20 compiler is found, else a pure Python package; the log
says which. none: pure Python. cpu: the CPU kernels, or stop with the reason. MAX_JOBS: compilers at a time. CXX: the
compiler.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("csrc/cpu")
LIBRARY = "nanoemox_kernels.libnanoemox_cpu"
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")] + ["-mfma", "-mprefer-vector-width=512"]
# Flags of each instruction set; the names are those of csrc/cpu/kernels.h.
LEVELS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": AVX512,
        "avx512_bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    }


class CannotBuild(Exception):
    pass


def run(command: list) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}")


def compiler() -> list[str]:
    """A command that compiles C++20, with OpenMP where it can. Raises CannotBuild."""
    if sys.platform == "win32":
        raise CannotBuild("the CPU kernels are built on Linux and macOS only")
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((path for name in candidates if (path := shutil.which(name))), None)
    if found is None:
        raise CannotBuild(f"no C++ compiler found ({', '.join(candidates)}); install one or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <initializer_list>\nint main() { return [](auto n) { return n; }(0); }\n")
        for extra in (["-fopenmp"], []):
            try:
                run([found, *FLAGS, *extra, source, "-o", Path(folder, "probe")])
                return [found, *extra]
            except CannotBuild as error:
                reason = error
    raise reason


class BuildNative(build_ext):
    """One shared library of all sources and instruction sets; it holds no Python, so its name carries no version."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target, work = Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp)
        try:
            self.compile(target, work)
        except CannotBuild as error:
            if MODE == "cpu":
                raise SystemExit(f"NANOEMOX_BUILD=cpu: {error}") from None
            print(f"nanoemox: without CPU kernels: {error}", file=sys.stderr)

    def compile(self, target: Path, work: Path) -> None:
        command = [*compiler(), *FLAGS]
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        once = [SOURCES / name for name in ("dispatch.cpp", "engine.cpp")]
        jobs = [
            (source, work / f"{source.stem}.o", ["-DNX_X86"] if len(LEVELS) > 1 else []) for source in once
        ]
        for source in sorted(set(SOURCES.glob("*.cpp")) - set(once)):
            jobs += [
                (source, work / f"{source.stem}.{n}.o", [f"-DNX_ISA={n}", *fs]) for n, fs in LEVELS.items()
            ]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: run([*command, *job[2], "-c", job[0], "-o", job[1]]), jobs))
        finished = work / target.name
        run([*command, "-shared", "-pthread", *(job[1] for job in jobs), "-o", finished])
        shutil.copyfile(finished, target)
        print(f"nanoemox: CPU kernels for {', '.join(LEVELS)} built with {command[0]}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """Tagged for the platform where it holds a library, and for no version of Python or torch."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)


MODE = os.environ.get("NANOEMOX_BUILD", "auto")
if MODE not in ("auto", "none", "cpu", "cuda"):
    raise SystemExit(f"NANOEMOX_BUILD={MODE}: want auto, none, cpu or cuda")
if MODE == "cuda":
    raise SystemExit(
        "NANOEMOX_BUILD=cuda: there are no CUDA sources; on CUDA the Triton kernels serve every op"
    )
extensions = []
if MODE != "none":
    try:
        compiler()
        extensions = [Extension(LIBRARY, [])]
    except CannotBuild as error:
        if MODE == "cpu":
            raise SystemExit(f"NANOEMOX_BUILD=cpu: {error}") from None
        print(f"nanoemox: without CPU kernels: {error}", file=sys.stderr)

setup(
    packages=find_packages(include=["nanoemox", "nanoemox.*", "nanoemox_kernels", "nanoemox_kernels.*"]),
    package_data={
        "nanoemox": ["py.typed"],
        "nanoemox.train": ["configs/*.yaml"],
        "nanoemox.demo": ["*.json", "*.safetensors", "*.mp4", "*.srt", "README.md"],
        "nanoemox_kernels": ["py.typed", "configs/*.json"],
    },
    ext_modules=extensions,
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
