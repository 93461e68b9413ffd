"""Who may import whom, and what an import costs."""

import ast
import subprocess
import sys

from paths import ROOT

PACKAGE, KERNELS = ROOT / "nanoemox", ROOT / "nanoemox_kernels"
TRITON = ("kernel.py", "_dot.py", "aot.py")  # the files that may import it
UPPER = {"train", "data", "evaluate", "demo", "cli"}  # each imports the model; the model imports none of them


def imported(path):
    """Modules that a file imports, as dotted names."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def test_arrows_point_down():
    for path in PACKAGE.rglob("*.py"):
        home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] not in ("tests", "benchmarks"), path
            if parts[0] == "nanoemox" and len(parts) > 1 and home not in UPPER:
                assert parts[1] not in UPPER, f"{path} imports {name}"


def test_the_kernels_know_no_model():
    for path in KERNELS.rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] not in ("nanoemox", "transformers", "tests"), f"{path} imports {name}"
            assert name.split(".")[0] != "triton" or path.name in TRITON, f"{path} imports triton"


def test_importing_the_kernels_needs_no_triton_and_no_gpu():
    code = "import nanoemox_kernels, torch, sys; print('triton' in sys.modules, torch.cuda.is_initialized())"
    assert run(code).strip() == "False False"
    assert "expert_gate" in run("import runpy; runpy.run_module('nanoemox_kernels', run_name='__main__')")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_the_package_is_cheap():
    heavy = {"torch", "transformers", "numpy", "av", "peft", "triton"}
    assert run(f"import nanoemox, sys; print({heavy} & set(sys.modules))").strip() == "set()"
    assert run(f"import nanoemox.cli, sys; print({heavy} & set(sys.modules))").strip() == "set()"


def test_the_decoder_needs_no_torch():
    assert run("import nanoemox.decoder, sys; print('torch' in sys.modules)").strip() == "False"


def test_every_public_name_is_there():
    assert run("import nanoemox; print([n for n in nanoemox.__all__ if not hasattr(nanoemox, n)])").strip() == "[]"
    assert run("import nanoemox.weights; import nanoemox; print(callable(nanoemox.load))").strip() == "True"


def test_files_stay_short():
    files = [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]
    assert not {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400}
