"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spike_kit"

FLOORS = (
    {"base"},
    {"data"},
    {"profiles"},
    {"models"},
    {"evaluation"},
    {"training"},
    {"experiments"},
    {"results"},
    {"figures"},
    {"views"},
    {"api"},
    {"cli", "__main__"},
)
"""From the ground up; a module may import from its own floor and from those below."""


def floor_of(part: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> set[str]:
    """Parts of the package a module imports from."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "spike_kit" else [f"spike_kit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("spike_kit.")}
    return parts - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_below_knows_anybody_above(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = {part for part in imported(path) if floor_of(part) > floor_of(own)}
    assert above == set()


def documentation(tree: ast.AST) -> set[int]:
    """Numbers of the lines of docstrings and of the strings that document fields."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        for child in body if isinstance(body, list) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def code_lines(text: str, first: int, last: int, left_out: set[int]) -> int:
    """Number of lines that are code: neither blank, nor a comment, nor documentation."""
    numbered = enumerate(text.splitlines(), 1)
    return sum(
        1
        for number, line in numbered
        if first <= number <= last and number not in left_out and line.strip() and not line.strip().startswith("#")
    )


def test_files_and_functions_stay_small() -> None:
    large = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        left_out = documentation(tree)
        if (size := code_lines(text, 1, text.count("\n") + 1, left_out)) > 400:
            large.append(f"{path.relative_to(PACKAGE)}: {size}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = code_lines(text, node.lineno, node.end_lineno or node.lineno, left_out)
                large += [f"{path.relative_to(PACKAGE)}: {node.name}: {size}"] if size > 60 else []
    assert large == []


def test_the_hall_is_empty() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py", "cli.py"}


def test_models_never_read_a_file() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert re.search(r"base(\.|.*import.*\b)(storage|paths)\b", text) is None, path
        assert "open(" not in text


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_define_nothing_and_end_with_a_check(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    for source in code:
        kinds = {type(node) for node in ast.walk(ast.parse(source))}
        assert kinds.isdisjoint({ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Lambda})
        assert len(source.splitlines()) <= 16
    ours = [line for source in code for line in source.splitlines() if re.match(r"(from|import) spike_kit", line)]
    assert len(ours) <= 2
    assert "import spike_kit as sk" in code[0]
    assert "sk.load(" in code[0]
    assert "SPIKE_KIT_DATASET" in code[0]
    assert "assert" in code[-1]
    opening = cells[0].source
    assert opening.startswith("# ")
    assert all(word in opening for word in ("**Needs**", "**Makes**", "**Takes**"))


def test_what_notebooks_import_exists() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spike_kit"):
                exec(compile(ast.Module([node], []), str(path), "exec"), {})


def test_notebooks_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:2]) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert numbers[0] == 1
    assert all(second == first + 1 for first, second in pairwise(numbers))


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_conda_environment_installs_this_package_with_extras_that_exist() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert "pip" in plain
    assert any(entry.startswith("python") for entry in plain)
    (editable,) = pip
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", editable)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(pyproject()["project"]["optional-dependencies"])


def test_the_all_extra_holds_every_extra_but_dev_and_cluster() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    (entry,) = extras["all"]
    assert set(entry.removeprefix("spike_kit[").removesuffix("]").split(",")) == set(extras) - {"all", "dev", "cluster"}


def test_constraints_pin_plain_versions_and_name_no_index() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[0-9A-Za-z.]+", line) for line in lines)
    assert any(line.startswith("torch==") for line in lines)


def test_commands_in_the_readme_exist() -> None:
    from spike_kit.cli import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    blocks = "\n".join(re.findall(r"```.*?```", text, re.DOTALL))
    makes = set(re.findall(r"\bmake ([a-z][a-z-]+)", blocks))
    commands = set(re.findall(r"spike-kit ([a-z][a-z-]+)", text))
    assert {"demo", "test"} <= makes <= targets
    assert commands <= set(COMMANDS)
    assert {"fetch", "build", "profile", "encode", "train", "evaluate"} <= commands


def test_paths_and_links_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_and_log_stay_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300
    assert len((ROOT / "docs" / "log.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_skip_is_listed_with_its_reason() -> None:
    listed = (ROOT / "docs" / "skips.md").read_text(encoding="utf-8")
    places = re.findall(r"^\| (tests/[\w./]+)", listed, flags=re.MULTILINE)
    missing = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in {"skip", "skipif", "importorskip"}:
                continue
            if not any(path == ROOT / place or ROOT / place in path.parents for place in places):
                missing.append(f"{path.name}:{call.lineno}: no row")
            given = [word.value for word in call.keywords if word.arg == "reason"]
            reason = given[0] if given else call.args[0]
            if isinstance(reason, ast.Constant) and str(reason.value) not in listed:
                missing.append(f"{path.name}:{call.lineno}: {reason.value}")
    assert missing == []
