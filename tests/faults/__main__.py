"""Plant the faults of faults.toml one by one in a copy of the checkout and see whether the tests catch them.

usage: python -m tests.faults [NAME ...]        (all of them take several minutes; nothing in the checkout changes)
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("faults.toml")


def read_faults() -> list[dict[str, str]]:
    """Faults of the list: name, the line that is right, the wrong one, and the tests that should fail."""
    return tomllib.loads(LIST.read_text(encoding="utf-8"))["fault"]


def place_of(fault: dict[str, str], root: Path = ROOT) -> Path:
    """The one file of the package that holds the right line.

    Raises
    ------
    ValueError
        If none or several do; then the fault has to be written anew.
    """
    files = [
        path
        for path in sorted((root / "spike_kit").rglob("*.py"))
        if path.read_text(encoding="utf-8").count(fault["right"]) == 1
    ]
    if len(files) != 1:
        raise ValueError(f"{fault['name']}: {len(files)} files hold {fault['right']!r} once; write the fault anew")
    return files[0]


def is_caught(fault: dict[str, str], copy: Path) -> bool:
    """Whether the tests fail with the fault planted in a copy of the checkout; the copy is mended afterwards."""
    place = place_of(fault, copy)
    sound = place.read_text(encoding="utf-8")
    place.write_text(sound.replace(fault["right"], fault["wrong"]), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *fault["tests"].split()]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        place.write_text(sound, encoding="utf-8")
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"{fault['name']}: pytest could not run: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.returncode != 0


def main(names: list[str]) -> int:
    """Try the named faults, or all; the exit code is the number of those that no test caught."""
    faults = [fault for fault in read_faults() if not names or fault["name"] in names]
    missed = []
    with tempfile.TemporaryDirectory(prefix="spike-kit-faults-") as folder:
        copy = Path(folder) / "checkout"
        for part in ("spike_kit", "tests", "benchmarks", "docs", "notebooks", ".ci"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in filter(Path.is_file, (*ROOT.glob("*.*"), ROOT / "Makefile")):
            shutil.copy(file, copy)
        for fault in faults:
            caught = is_caught(fault, copy)
            missed += [] if caught else [fault["name"]]
            print(f"{'caught' if caught else 'MISSED':8} {fault['name']}", flush=True)
    print(f"{len(faults) - len(missed)} of {len(faults)} caught" + (f"; missed: {', '.join(missed)}" if missed else ""))
    return len(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
