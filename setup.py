"""Build csrc/ into the package. All other metadata is in pyproject.toml.

Environment variables:
    NANOEMOX_BUILD: `auto` (default) builds the CPU kernels if a C++20 compiler is found and a pure Python
        package otherwise; the log says which. `none` builds a pure Python package. `cpu` builds the CPU
        kernels or fails with the reason.
    MAX_JOBS: number of compilers that run at a time; default: the number of CPUs.
    CXX: the C++ compiler.
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
COMPILED_ONCE = ("dispatch.cpp", "engine.cpp")  # every other source is compiled once per instruction set
LIBRARY = "nanoemox_kernels.libnanoemox_cpu"
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")] + ["-mfma", "-mprefer-vector-width=512"]
# Compiler flags of each instruction set. The names are those of csrc/cpu/kernels.h.
LEVELS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": AVX512,
        "avx512_bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    }


class CannotBuild(Exception):
    """The CPU kernels cannot be built here. The message is the reason."""


def run(command: list) -> None:
    """Run a compiler and pass on what it prints. Raises CannotBuild if it fails."""
    completed = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    sys.stderr.write(completed.stderr)
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or ["no message"]
        raise CannotBuild(f"{command[0]} failed: {lines[0]}")


def compiler() -> list[str]:
    """Return a command that compiles C++20, with OpenMP if the compiler supports it. Raises CannotBuild."""
    if sys.platform == "win32":
        raise CannotBuild("the CPU kernels are built on Linux and macOS only")
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    paths = [shutil.which(name) for name in candidates]
    path = next((path for path in paths if path), None)
    if path is None:
        raise CannotBuild(f"no C++ compiler found ({', '.join(candidates)}); install one or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <initializer_list>\nint main() { return [](auto n) { return n; }(0); }\n")
        for openmp in (["-fopenmp"], []):
            try:
                run([path, *FLAGS, *openmp, source, "-o", Path(folder, "probe")])
                return [path, *openmp]
            except CannotBuild as error:
                reason = error
    raise reason


def install(library: Path, target: Path) -> None:
    """Copy the library atomically: a process that loads `target` meanwhile gets the old or the new one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(library, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class BuildNative(build_ext):
    """Links all sources, at every instruction set, into one shared library.

    The library contains no Python code, so its file name carries no Python version.
    """

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def copy_file(self, infile: str, outfile: str, *args: object, **options: object) -> tuple[str, bool]:
        """The last step of `build_ext --inplace` and of an editable installation."""
        install(Path(infile), Path(outfile))
        return outfile, True

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
        jobs = self.jobs(work)
        workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: run([*command, *job[2], "-c", job[0], "-o", job[1]]), jobs))
        library = work / target.name
        objects = [job[1] for job in jobs]
        run([*command, "-shared", "-pthread", *objects, "-o", library])
        install(library, target)
        print(f"nanoemox: CPU kernels for {', '.join(LEVELS)} built with {command[0]}", file=sys.stderr)

    @staticmethod
    def jobs(work: Path) -> list[tuple[Path, Path, list[str]]]:
        """(source, object file, additional flags) of every compilation."""
        jobs = []
        for source in sorted(SOURCES.glob("*.cpp")):
            if source.name in COMPILED_ONCE:
                flags = ["-DNX_X86"] if len(LEVELS) > 1 else []
                jobs.append((source, work / f"{source.stem}.o", flags))
                continue
            for level, flags in LEVELS.items():
                jobs.append((source, work / f"{source.stem}.{level}.o", [f"-DNX_ISA={level}", *flags]))
        return jobs


class PlatformWheel(bdist_wheel):
    """A wheel with a library is tagged for the platform, but for no version of Python or torch."""

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
        extensions = [Extension(LIBRARY, [], optional=MODE == "auto")]
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
