"""Rules of the house that no linter knows."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spike_kit"

ORDER: str = "base data profiles models evaluation training experiments results figures views api cli __main__"
"""Floors from the ground up; a module may import from its own floor and from those below."""


def modules() -> dict[str, str]:
    """Text of every module of the package by its path there."""
    files = (path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py")
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in files}


def test_nobody_below_knows_anybody_above() -> None:
    above, floors = [], ORDER.split()
    for name, text in modules().items():
        own = floors.index(re.split(r"[/.]", name)[0])
        found = re.findall(r"^ *(?:from|import) spike_kit(?: import |\.)(\w+)", text, re.MULTILINE)
        above += [f"{name}: {part}" for part in found if part != "__version__" and floors.index(part) > own]
    assert above == []


def code_lines(tree: ast.AST, text: str) -> set[int]:
    """Numbers of the lines that are neither blank, nor a comment, nor documentation."""
    documentation: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return {number for number, line in lines if line and line[0] != "#"} - documentation


def test_files_and_functions_stay_small() -> None:
    large = []
    for name, text in modules().items():
        tree = ast.parse(text)
        code = code_lines(tree, text)
        large += [f"{name}: {len(code)}"] if len(code) > 400 else []
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = len(code.intersection(range(node.lineno, (node.end_lineno or 0) + 1)))
                large += [f"{name}: {node.name}: {size}"] if size > 60 else []
    assert large == []


def test_the_hall_is_empty() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py", "cli.py"}


def test_models_never_read_a_file() -> None:
    pattern = r"base(\.|.*import.*\b)(storage|paths)\b|open\("
    assert [name for name, text in modules().items() if name.startswith("models/") and re.search(pattern, text)] == []


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


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_remove_what_only_they_need(path: Path) -> None:
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    for made, removed in (
        (r"(\w+) = sk\.dataset\(", r"rmtree\({0}\.path"),
        (r'profiles="(loopback)"', r'"{0}"\)\.unlink'),
    ):
        assert all(re.search(removed.format(name), code) for name in re.findall(made, code))


def test_notebooks_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:2]) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert numbers == [*range(1, len(numbers) + 1)]


def test_extras_exist_and_all_holds_every_one_but_dev_and_cluster() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (entry,) = extras["all"]
    assert set(entry.removeprefix("spike_kit[").removesuffix("]").split(",")) == set(extras) - {"all", "dev", "cluster"}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    python, pip, *_, packages = environment["dependencies"]
    assert (python.startswith("python"), pip) == (True, "pip")
    (editable,) = packages["pip"]
    assert set(editable.removeprefix("-e .[").removesuffix("]").split(",")) <= set(extras)


def test_constraints_pin_plain_versions_and_name_no_index() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pin = r"""[A-Za-z0-9_.\-]+==[0-9A-Za-z.]+( ; python_full_version >= "[0-9.]+")?"""
    assert all(re.fullmatch(pin, line) for line in lines)
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
    places = [ROOT / place for place in re.findall(r"^\| (tests/[\w./]+)", listed, flags=re.MULTILINE)]
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and re.search(r"\.(skip|skipif|importorskip)$", ast.unparse(call.func)):
                assert any(path.is_relative_to(place) for place in places), f"{path.name}:{call.lineno}: no row"
                reason = next((word.value for word in call.keywords if word.arg == "reason"), call.args[0])
                assert not isinstance(reason, ast.Constant) or str(reason.value) in listed, ast.unparse(call)
