"""Who may import whom, what an import costs, and where attributes are created.

A room is a folder, or a file that lies directly in nanoemox/ or nanoemox_kernels/. Rooms are listed from top
to bottom and import downwards only; between files there is no circle. Imports inside functions count.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE, KERNELS = ROOT / "nanoemox", ROOT / "nanoemox_kernels"
TRITON = ("kernel.py", "_dot.py", "aot.py")  # the files that may import it
# Rooms of nanoemox from top to bottom, those of one line side by side: they do not import each other.
ROOMS = [
    ["nanoemox.__main__"],
    ["nanoemox.cli"],
    ["nanoemox.commands"],
    ["nanoemox.demo.make"],
    ["nanoemox.demo"],
    ["nanoemox.train"],
    ["nanoemox.data.synthetic"],
    ["nanoemox.data.formats"],
    ["nanoemox.data"],
    ["nanoemox.weights"],
    ["nanoemox.loading"],
    ["nanoemox.fast"],
    ["nanoemox.fast.decode"],
    ["nanoemox.fast.layers"],
    ["nanoemox.build"],
    ["nanoemox.model"],
    ["nanoemox.generation"],
    ["nanoemox.modules", "nanoemox.bundle", "nanoemox.media"],
    ["nanoemox.prompts", "nanoemox.devices"],
    ["nanoemox.tasks"],
    ["nanoemox.config"],
    ["nanoemox.errors"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of everything under nanoemox/ and nanoemox_kernels/ of a tree."""
    found = {}
    for package in ("nanoemox", "nanoemox_kernels"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, root: Path) -> list[str]:
    """Dotted names that a file imports, anywhere in it: `from a import b` gives a.b."""
    package = list(path.relative_to(root).parent.parts)
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the two packages that it imports."""
    files = modules(root)
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        targets = set()
        for name in imports(path, root):
            while name and name not in files:
                name = name.rpartition(".")[0]
            if name and name != module:
                targets.add(name)
        found[module] = targets
    return found


def room_of(module: str, files: dict[str, Path]) -> str:
    """The folder of a module, or itself where it lies directly in a package."""
    if files[module].name == "__init__.py":
        return module
    parent = module.rpartition(".")[0]
    return module if parent in ("nanoemox", "nanoemox_kernels") else parent


def upward(root: Path) -> list[str]:
    """Imports of nanoemox that do not lead down the list of rooms."""
    files, bad = modules(root), []
    for module, targets in arrows(root).items():
        if not module.startswith("nanoemox."):
            continue
        for target in targets:
            if not target.startswith("nanoemox."):
                continue  # nanoemox_kernels, or nanoemox itself for its version
            above, below = room_of(module, files), room_of(target, files)
            if above != below and LEVEL[above] >= LEVEL[below]:
                bad.append(f"{module} -> {target}")
    return bad


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of two and more)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in number:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(group)

    for node in graph:
        if node not in number:
            visit(node)
    return found


def rooms(root: Path) -> dict[str, set[str]]:
    """Room -> the rooms that its files import, in both packages."""
    files, found = modules(root), {}
    for module, targets in arrows(root).items():
        room = room_of(module, files)
        found.setdefault(room, set()).update(room_of(target, files) for target in targets)
        found[room].discard(room)
    return found


def test_rooms_import_downwards():
    assert upward(ROOT) == []


def test_every_room_is_listed():
    listed = {room for room in rooms(ROOT) if room.startswith("nanoemox.")}
    assert listed == set(LEVEL)


def test_no_circle_between_files_nor_rooms():
    assert circles(arrows(ROOT)) == []
    assert circles(rooms(ROOT)) == []


@pytest.mark.parametrize(
    "file, line",
    [
        ("nanoemox/media/clip.py", "from ..model import NanoEmoX"),
        ("nanoemox/config/parts.py", "def late():\n    from .. import prompts"),
        ("nanoemox/modules/vision.py", "import nanoemox.generation.sampler"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path, file, line):
    for package in ("nanoemox", "nanoemox_kernels"):
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    assert upward(tmp_path) == []
    with open(tmp_path / file, "a") as out:
        out.write(f"\n{line}\n")
    assert upward(tmp_path)


def test_a_planted_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_fast_parts_mirror_the_reference_modules():
    """Every reference part has a fast file of the same name; that of attention is layers/attention.py."""
    names = {path.stem for path in (PACKAGE / "modules").glob("*.py")}
    fast = {path.stem for path in (PACKAGE / "fast").rglob("*.py")}
    assert {"vision", "audio", "face", "qformer", "fusion", "attention"} <= names & fast


def test_packages_know_no_tests_and_no_benchmarks():
    for path in modules(ROOT).values():
        assert not {name.split(".")[0] for name in imports(path, ROOT)} & {"tests", "benchmarks"}, path


def test_the_kernels_know_no_model():
    for path in KERNELS.rglob("*.py"):
        for name in imports(path, ROOT):
            assert name.split(".")[0] not in ("nanoemox", "transformers", "tests"), f"{path} imports {name}"
            assert name.split(".")[0] != "triton" or path.name in TRITON, f"{path} imports triton"


def test_importing_the_kernels_needs_no_triton_and_no_gpu():
    code = "import nanoemox_kernels, torch, sys; print('triton' in sys.modules, torch.cuda.is_initialized())"
    assert run(code).strip() == "False False"
    assert "expert_gate" in run("import runpy; runpy.run_module('nanoemox_kernels', run_name='__main__')")


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_importing_the_package_is_cheap():
    heavy = {"torch", "transformers", "numpy", "av", "peft", "triton"}
    assert run(f"import nanoemox, sys; print({heavy} & set(sys.modules))").strip() == "set()"
    assert run(f"import nanoemox.cli, sys; print({heavy} & set(sys.modules))").strip() == "set()"


def test_the_decoder_needs_no_torch():
    assert run("import nanoemox.media.child, sys; print('torch' in sys.modules)").strip() == "False"


def test_every_public_name_is_there():
    assert (
        run("import nanoemox; print([n for n in nanoemox.__all__ if not hasattr(nanoemox, n)])").strip()
        == "[]"
    )
    assert run("import nanoemox.weights; import nanoemox; print(callable(nanoemox.load))").strip() == "True"


CONSTRUCTORS = ("__init__", "__new__", "__post_init__")


def assigned_attributes(method: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, int]:
    """Attribute that a method assigns to its first argument, in whatever form -> line."""
    arguments = [*method.args.posonlyargs, *method.args.args]
    lines: dict[str, int] = {}
    for node in ast.walk(method):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store) or not arguments:
            continue
        if isinstance(node.value, ast.Name) and node.value.id == arguments[0].arg:
            lines.setdefault(node.attr, node.lineno)
    return lines


def methods(class_: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in class_.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def declared_attributes(class_: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """What constructors assign, class-level names and fields, of a class and its bases in the same tree."""
    names = {
        name
        for method in methods(class_)
        if method.name in CONSTRUCTORS
        for name in assigned_attributes(method)
    }
    for node in class_.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    for base in class_.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        name = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
        for parent in classes.get(name, []):
            if parent is not class_:
                names |= declared_attributes(parent, classes)
    return names


def late_attributes(root: Path) -> list[str]:
    """Attributes that a method other than a constructor creates: "file:line Class.attribute"."""
    trees = {path: ast.parse(path.read_text()) for path in modules(root).values()}
    located = [
        (path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    classes: dict[str, list[ast.ClassDef]] = {}
    for _, class_ in located:
        classes.setdefault(class_.name, []).append(class_)
    late = []
    for path, class_ in located:
        declared = declared_attributes(class_, classes)
        for method in methods(class_):
            for name, line in assigned_attributes(method).items():
                if name not in declared:
                    late.append(f"{path.relative_to(root)}:{line} {class_.name}.{name}")
    return late


def test_attributes_are_born_in_constructors():
    assert late_attributes(ROOT) == []


@pytest.mark.parametrize(
    "statement",
    ["self.late = 1", "self.early, (self.late, _) = 1, (2, 3)", "self.late: int = 1", "self.late += 1"],
)
def test_a_planted_attribute_is_seen(tmp_path, statement):
    file = tmp_path / "nanoemox" / "late.py"
    file.parent.mkdir()
    file.write_text(
        "class Base:\n    def __init__(self):\n        self.early = 0\n\n"
        "class Child(Base):\n    field: int\n    name = ''\n\n    def method(self):\n"
        f"        self.early = self.field = self.name = 2\n        {statement}\n"
    )
    assert late_attributes(tmp_path) == [f"{file.relative_to(tmp_path)}:11 Child.late"]


def test_files_stay_short():
    files = [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]
    assert not {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400}
