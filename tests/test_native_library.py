"""The C++ library: its header against _native.py, OpenMP runtime, environment variables, sanitizers."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from paths import ROOT

from nanoemox_kernels import _native
from nanoemox_kernels.linear import quantized

HEADER = (ROOT / "csrc/include/nanoemox.h").read_text()
LEVELS = _native.isa_levels() if _native.library is not None else []
needs_library = pytest.mark.skipif(_native.library is None, reason=f"no C++ kernels: {_native.why_not}")


def declarations(body):
    """(type, name) of the fields of a C structure, in order; a pointer's type ends in *."""
    fields = []
    for declaration in filter(str.strip, body.split(";")):
        kind, names = re.fullmatch(r"\s*(?:const )?(\w+)\s*(.*)", declaration, flags=re.S).groups()
        for name in names.split(","):
            stars, label = re.fullmatch(r"\s*(\**)\s*(\w+)\s*", name).groups()
            fields.append((kind + stars, label))
    return fields


def structures(header):
    """The structures of a header in the notation of _native.STRUCTURES."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    found = {}
    for body, structure in re.findall(r"typedef struct \{([^{}]*)\} nx_(\w+);", header):
        fields = []
        for kind, name in declarations(body):
            if kind.endswith("*"):
                fields.append("*" + name)
            elif kind.startswith("nx_"):
                fields.append(f"{name}:{kind.removeprefix('nx_')}")
            else:
                fields.append({"int64_t": "", "double": "~"}[kind] + name)
        found[structure] = fields
    return found


def declared():
    return {name: fields.split() for name, fields in _native.STRUCTURES.items()}


def test_structures_are_those_of_the_header():
    assert list(structures(HEADER)) == list(_native.STRUCTURES)
    for name, fields in structures(HEADER).items():
        assert fields == _native.STRUCTURES[name].split(), name
    assert f"NX_ABI_VERSION {_native._ABI}\n" in HEADER


@pytest.mark.parametrize(
    ("structure", "text", "change"),
    [
        ("engine_config", "layers, width, mlp", "layers, mlp, width"),
        ("engine_config", "const void* embedding;", "int64_t embedding;"),
        ("engine_config", "double eps;\n} nx_engine_config;", "int64_t eps;\n} nx_engine_config;"),
        ("engine_config", "nx_matrix head;", "const void* head;"),
        ("engine_layer", "q, k, v, o, gate, up, down;", "q, k, v, o, up, gate, down;"),
        ("engine_layer", "*up_bias, *down_bias;", "*up_bias;"),
        (
            "matrix",
            "const void* data;\n    const void* scales;",
            "const void* scales;\n    const void* data;",
        ),
        ("quantized_linear_args", "precision, activation, combine", "activation, precision, combine"),
        ("attention_args", "causal_offset;", "causal_offset, window;"),
    ],
)
def test_a_changed_field_is_noticed(structure, text, change):
    """Order, name, type and number of the fields, each changed in a copy of the header's text."""
    assert HEADER.count(text) == 1
    changed = structures(HEADER.replace(text, change))
    assert [name for name, fields in changed.items() if fields != declared()[name]] == [structure]


@pytest.mark.parametrize("structure", _native.STRUCTURES)
def test_two_swapped_fields_of_any_structure_are_noticed(structure):
    fields = declared()[structure]
    assert len(set(fields)) == len(fields)
    for i in range(len(fields) - 1):
        swapped = fields[:i] + [fields[i + 1], fields[i]] + fields[i + 2 :]
        assert swapped != structures(HEADER)[structure]


def test_enumerations_are_those_of_the_header():
    constants = {name.lower(): int(value) for name, value in re.findall(r"NX_(\w+) = (\d+)", HEADER)}
    names = {"fp32": "f32", "none": None}
    for table in (quantized.PRECISIONS, quantized.ACTIVATIONS, quantized.COMBINATIONS):
        for name, value in table.items():
            assert value == (0 if name == "none" else constants[names.get(name, name)]), name
    assert {torch.float32: constants["f32"], torch.bfloat16: constants["bf16"]} == _native.DTYPES


def python(code, **env):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env})


@needs_library
def test_one_openmp_runtime_is_mapped():
    code = "import nanoemox_kernels; print(open('/proc/self/maps').read())"
    paths = {line.split()[-1] for line in python(code).stdout.splitlines() if line}
    mapped = [path for path in paths if re.search(r"/libg?i?omp[^/]*$", path)]
    assert len(mapped) == 1 and "torch" in mapped[0]


@needs_library
def test_environment_variables():
    lowest = python("import nanoemox_kernels._native as n; print(n.isa())", NANOEMOX_ISA="baseline")
    assert lowest.stdout.strip() == "baseline"
    wrong = python("import nanoemox_kernels", NANOEMOX_ISA="mmx")
    assert "instruction set 'mmx': this machine offers baseline" in wrong.stderr
    command = "import runpy; runpy.run_module('nanoemox_kernels', run_name='__main__')"
    # No GPU is visible, so that the rows of the ops are all that is printed.
    status = python(command, NANOEMOX_KERNELS="reference", CUDA_VISIBLE_DEVICES="").stdout
    assert status and all(line.split()[2] == "reference" for line in status.splitlines())
    assert {"NANOEMOX_KERNELS=reference", "no kernel"} == {line[35:].strip() for line in status.splitlines()}


AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")] + ["-mfma"]
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
}


def build(folder, program, sanitizer, levels):
    """Build tests/csrc/<program>.cpp with csrc, without optimisation: compiling with sanitizers is slow."""
    flags = ["-std=c++20", "-O0", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    flags += ["-Wno-psabi", "-pthread", "-I", ROOT / "csrc/include"]
    once = {"dispatch", "engine"}
    jobs = [(ROOT / f"csrc/cpu/{stem}.cpp", stem, ["-DNX_X86"] if len(levels) > 1 else []) for stem in once]
    for source in (ROOT / "csrc/cpu").glob("*.cpp"):
        if source.stem not in once:
            jobs += [(source, source.stem + level, [f"-DNX_ISA={level}", *FLAGS[level]]) for level in levels]
    jobs += [(ROOT / f"tests/csrc/{name}.cpp", f"test_{name}", []) for name in program]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [
            ["g++", *flags, *options, "-c", source, "-o", folder / f"{stem}.o"]
            for source, stem, options in jobs
        ]
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    objects = [folder / f"{stem}.o" for _, stem, _ in jobs if not stem.startswith("test_")]
    for name in program:
        link = ["g++", *flags, folder / f"test_{name}.o", *objects, "-o", folder / name]
        subprocess.run(link, check=True)


@pytest.mark.skipif(not shutil.which("g++") or len(LEVELS) < 4, reason="needs g++ and a CPU with every level")
def test_sanitizers_find_nothing(tmp_path):
    """The C ABI without Python, under AddressSanitizer and UBSan, at every instruction set of this CPU."""
    build(tmp_path, ["random_shapes", "engine"], "address,undefined", list(FLAGS))
    for name, rounds in (("random_shapes", "30"), ("engine", "6")):
        done = subprocess.run([tmp_path / name, rounds], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "at baseline" in done.stdout


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_thread_sanitizer_finds_nothing(tmp_path):
    """The engine only: the threads of the other kernels belong to OpenMP."""
    build(tmp_path, ["engine"], "thread", ["baseline"])
    done = subprocess.run([tmp_path / "engine", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
