"""The text of the repository: cited sections, links, paths, options and the length of lines.

Every check is a function of a `Tree`, so that it can be shown to fail on a planted violation.
"""

import argparse
import importlib.util
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from paths import ROOT
from test_layering import ROOMS

import nanoemox_kernels
from nanoemox.cli import _parser

TEXT = {".py", ".md", ".cpp", ".h", ".toml", ".yaml", ".yml", ".txt", ".in", ".svg", ""}
CODE = {".py", ".cpp", ".h"}
LONGEST = 110  # characters of a line; tables, links and headings of Markdown excepted
THIS = "tests/test_docs.py"  # it holds planted violations
TOP = ("nanoemox", "nanoemox_kernels", "csrc", "docs", "tests", "benchmarks", ".ci")
GENERATED = ("docs/benchmarks-cpu.md", "docs/benchmarks-gpu.md", "docs/ablation.md")  # written by scripts


@dataclass
class Tree:
    """Text files by their path in the repository, and every path that exists there."""

    texts: dict[str, str]
    files: set[str]

    @cached_property
    def paths(self) -> set[str]:
        """Files and the folders above them."""
        folders = {str(parent) for file in self.files for parent in Path(file).parents}
        return self.files | folders

    def of(self, *suffixes: str) -> dict[str, str]:
        return {file: text for file, text in self.texts.items() if Path(file).suffix in suffixes}


@pytest.fixture(scope="module")
def tree() -> Tree:
    """What git tracks, and new files that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    files = {file for file in listed if file and (ROOT / file).is_file()}
    texts = {file: (ROOT / file).read_text() for file in files if Path(file).suffix in TEXT and file != THIS}
    return Tree(texts, files)


_NUMBER = r"\d+(?:\.\d+)?"
_NUMBERS = rf"{_NUMBER}(?:(?:,| and| to|, and) {_NUMBER})*"
_CITED = re.compile(rf"(?:(\S+\.md) )?\bsections? ({_NUMBERS})", re.IGNORECASE)
_BARE = re.compile(rf"\b(?:architecture|[A-Za-z_]+\.md) {_NUMBERS}\b")  # without the word section


def headings(page: str) -> set[str]:
    """Numbers of the numbered headings of a page."""
    outside = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(rf"^#+ ({_NUMBER})\.? ", outside, re.MULTILINE))


def wrong_sections(tree: Tree) -> list[str]:
    """Citations that are not `docs/<page>.md section N`, or name a section that is not there."""
    wrong = []
    for file, text in tree.texts.items():
        flat = re.sub(r"\s*\n[\s#/*]*", " ", text)  # a citation may continue on the next line of a comment
        for cited in _CITED.finditer(flat):
            page = (cited[1] or "").lstrip("(`[\"'")
            if not page and file.startswith("docs/") and headings(text):
                page = file
            known = headings(tree.texts[page]) if page in tree.texts and page.startswith("docs/") else None
            missing = [number for number in re.findall(_NUMBER, cited[2]) if number not in (known or ())]
            if missing:
                wrong.append(f"{file}: {cited[0]!r}")
        wrong += [f"{file}: {cited[0]!r}" for cited in _BARE.finditer(flat)]
    return sorted(wrong)


def test_cited_sections_exist(tree):
    assert not (wrong := wrong_sections(tree)), "\n".join(["", *wrong])


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(tree: Tree) -> list[str]:
    """Relative links of Markdown pages that lead nowhere."""
    broken = []
    for file, text in tree.of(".md").items():
        outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", outside):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = str((ROOT / file).parent.joinpath(target).resolve().relative_to(ROOT)) if target else file
            known = path in tree.paths and (not anchor or anchor in anchors(tree.texts.get(path, "")))
            if not known:
                broken.append(f"{file}: {link}")
    return sorted(broken)


def test_relative_links_lead_somewhere(tree):
    assert not (wrong := broken_links(tree)), "\n".join(["", *wrong])


_PATH = re.compile(rf"(?:{'|'.join(map(re.escape, TOP))})(?:/[\w.\-]+)+/?")


def unknown_paths(tree: Tree) -> list[str]:
    """Paths of this repository that pages, comments or docstrings name and that do not exist."""
    unknown = []
    for file, text in (tree.of(".md") | tree.of(".py")).items():
        found = _PATH.finditer(text)
        for match in found:
            before, after = (
                text[max(match.start() - 1, 0) : match.start()],
                text[match.end() : match.end() + 1],
            )
            if re.match(r"[\w./\-<>{*]", before) or after in ("<", "{", "*", "("):
                continue  # part of a longer path, a URL or a pattern
            path = match[0].rstrip("/.")
            if path not in tree.paths and f"{path}.py" not in tree.paths and not _is_made(path):
                unknown.append(f"{file}: {path}")
    return sorted(unknown)


def _is_made(path: str) -> bool:
    """Files that a build, a run or a user makes."""
    return path.endswith((".so", ".safetensors.index.json")) or path.startswith(("tests/data/MIntRec",))


def test_named_paths_exist(tree):
    assert not (wrong := unknown_paths(tree)), "\n".join(["", *wrong])


def test_every_room_has_a_row_and_a_box(tree):
    """Section 20 of the architecture and its drawing know every folder of the layering test."""
    page = tree.texts["docs/architecture.md"]
    folders = page[page.index("## 20. Folders") : page.index("## 21.")]
    drawn = {name for row in _drawings().FOLDERS for box, _ in row for name in box.split(", ")}
    for room in (room for rooms in ROOMS for room in rooms):
        name = room.removeprefix("nanoemox.")
        if name == "__main__":
            continue
        path = name.replace(".", "/")
        assert f"`{path}`" in folders or f"`{path}.py`" in folders, f"{room} is missing in section 20"
        assert name in drawn or name.split(".")[0] in drawn, f"{room} is missing in docs/drawings/draw.py"


def unlisted_ops(page: str, names: list[str]) -> list[str]:
    """Ops of the kernels' public names that the page of the ops does not list."""
    listed = {
        name for cell in re.findall(r"^\| \[([^\]]+)\]", page, re.MULTILINE) for name in cell.split(", ")
    }
    not_ops = {"status", "settings", "is_tuned"}
    ops = [name for name in names if name.islower() and name not in not_ops and not name.startswith("fold_")]
    return [name for name in ops if name not in listed]


def test_every_op_has_a_page(tree):
    assert unlisted_ops(tree.texts["docs/ops/README.md"], nanoemox_kernels.__all__) == []


def _drawings():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "drawings" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawings_are_those_of_the_script(tmp_path, tree):
    _drawings().main(tmp_path)
    for drawing in tmp_path.iterdir():
        assert drawing.read_text() == tree.texts[f"docs/drawings/{drawing.name}"], drawing.name


def options(parser: argparse.ArgumentParser, command: list[str]) -> tuple[set[str], list[str]]:
    """Options of a subcommand, and the words of `command` that name it."""
    known = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and command and command[0] in action.choices:
            below, rest = options(action.choices[command[0]], command[1:])
            return known | below, [command[0], *rest]
    return known, []


def unknown_options(text: str) -> list[str]:
    """`nanoemox ...` in shell blocks and in backticks that the parser does not know."""
    unknown = []
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").split("\n")]
    spans = re.findall(r"`(nanoemox [^`]+)`", text.replace("\n", " "))
    for line in [*lines, *spans]:
        called = re.search(r"(?:^|[ /])nanoemox ([a-z]\S*.*)", line.split("#")[0])
        if called is None:
            continue
        words = called[1].split()
        known, named = options(_parser(), words)
        bad = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
        if not named or bad:
            unknown.append(f"{line.strip()}: {bad or words[0]}")
    return unknown


def test_commands_of_the_pages_exist(tree):
    for file in ("README.md", "CONTRIBUTING.md", *(f for f in tree.texts if f.startswith("docs/"))):
        if file in tree.texts and file.endswith(".md"):
            assert unknown_options(tree.texts[file]) == [], file


def test_scripts_of_the_readme_exist(tree):
    for script in re.findall(r"^(?:python|pytest) ([\w/.]+)", tree.texts["README.md"], re.MULTILINE):
        assert script.rstrip("/") in tree.paths, script


def long_lines(tree: Tree) -> list[str]:
    long = []
    for file, text in tree.of(*CODE, ".md").items():
        if file in GENERATED or "fixtures/" in file:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            excepted = file.endswith(".md") and (line.lstrip().startswith(("|", "#")) or "](" in line)
            if len(line) > LONGEST and not excepted and not re.search(r"https?://\S{60,}", line):
                long.append(f"{file}:{number}: {len(line)}")
    return sorted(long)


def test_no_line_is_too_long(tree):
    assert not (wrong := long_lines(tree)), "\n".join(["", *wrong])


_PRIVATE = re.compile(
    r"(?<![\w.])/(?:work|root|home|Users|opt|tmp)/\w+|pypi\.org/simple|--index-url|--extra-index-url"
    r"|download\.pytorch\.org|files\.pythonhosted\.org|\blocalhost:\d|\b(?:10|192\.168)\.\d+\.\d+\.\d+\b"
)


def private_text(tree: Tree) -> list[str]:
    """Paths of a machine, addresses of package registries."""
    return [f"{file}: {found[0]}" for file, text in tree.texts.items() for found in _PRIVATE.finditer(text)]


def test_no_machine_paths_and_no_registries(tree):
    assert not (wrong := private_text(tree)), "\n".join(["", *wrong])


PAGE = "# Page\n\n## 1. One\n\n### 1.1 Part\n\n## 2. Two\n"


def planted(**texts: str) -> Tree:
    files = {name.replace("__", "/") + ".md": text for name, text in texts.items()}
    return Tree({"docs/page.md": PAGE, **files}, {"docs/page.md", "nanoemox/model.py", *files})


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("see docs/page.md section 1.1", 0),
        ("see `docs/page.md sections 1 and 2`", 0),
        ("see docs/page.md\n# section 2", 0),
        ("see docs/page.md section 3", 1),
        ("see docs/page.md sections 1, 2 and 3", 1),
        ("see docs/absent.md section 1", 1),
        ("see page.md section 1", 1),
        ("see section 1", 1),
        ("see docs/page.md 2", 1),
        ("see architecture 4", 1),
    ],
)
def test_a_planted_section_is_seen(text, wrong):
    assert len(wrong_sections(planted(other=text))) == wrong


def test_a_page_may_cite_itself():
    assert wrong_sections(Tree({"docs/page.md": PAGE + "as in section 2, A1"}, set())) == []
    assert wrong_sections(Tree({"docs/page.md": PAGE + "as in section 9"}, set()))


@pytest.mark.parametrize(
    "link, broken",
    [("page.md", 0), ("page.md#2-two", 0), ("#1-one", 0), ("https://example.org/x", 0)]
    + [("absent.md", 1), ("page.md#3-three", 1), ("../nanoemox/absent.py", 1)],
)
def test_a_planted_link_is_seen(link, broken):
    assert len(broken_links(planted(docs__other=f"# 1. One\n\n[x]({link})"))) == broken


@pytest.mark.parametrize(
    "text, unknown",
    [("`nanoemox/model.py`", 0), ("nanoemox/model.py, x", 0), ("docs/<page>.md", 0)]
    + [("`nanoemox/absent.py`", 1), ("see docs/absent.md.", 1)],
)
def test_a_planted_path_is_seen(text, unknown):
    assert len(unknown_paths(planted(other=text))) == unknown


def test_a_planted_op_is_seen():
    assert unlisted_ops("| [first, second_](page.md) | x |", ["first", "second_", "Tap", "third"]) == [
        "third"
    ]


def test_a_planted_option_is_seen():
    assert unknown_options("```sh\nnanoemox run x.mp4 --task mer\n```") == []
    assert unknown_options("```sh\nnanoemox run x.mp4 --taks mer\n```")
    assert unknown_options("run `nanoemox fly` now")


def test_a_planted_line_and_a_planted_path_of_a_machine_are_seen():
    assert long_lines(planted(other="x" * 111)) and not long_lines(planted(other="| " + "x" * 111))
    assert private_text(planted(other="see /home/someone/x")) and not private_text(planted(other="a/home/b"))
