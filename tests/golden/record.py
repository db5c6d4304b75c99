"""Record what the golden tests expect, on purpose.

``python -m tests.golden.record`` writes the numbers of the models, after a version was raised;
``python -m tests.golden.record files`` writes what files look like, after a change of the layout or of docs/study.
"""

import contextlib
import json
import os
import sys
import tempfile
from typing import Any

import torch

from spike_kit.base import paths
from spike_kit.models import MODELS
from tests.golden import files, numbers


def record_models() -> int:
    """Compute and write the numbers of all models; refuse changed numbers of an unchanged version."""
    torch.set_num_threads(1)
    before = numbers.read()
    after: dict[str, Any] = {}
    refused = []
    for model in MODELS:
        presets = {name: _rounded(numbers.computed(model, form)) for name, form in numbers.forms(model).items()}
        after[model] = {"versions": numbers.versions(model), "presets": presets}
        known = before.get(model, {"versions": {}, "presets": {}})
        for name in presets.keys() & known["presets"]:
            changed = any(numbers.differences(presets[name], known["presets"][name]))
            if changed and known["versions"] == numbers.versions(model):
                refused.append(f"{model}/{name}")
            elif not changed:
                presets[name] = known["presets"][name]
    if refused:
        sys.stderr.write(f"nothing was written: raise `version` first, numbers changed: {', '.join(refused)}\n")
        return 1
    entries = []
    for model, entry in after.items():
        presets = ",\n".join(f"    {json.dumps(name)}: {json.dumps(found)}" for name, found in entry["presets"].items())
        head = f'  {json.dumps(model)}: {{"versions": {json.dumps(entry["versions"])}, "presets": {{'
        entries.append(f"{head}\n{presets}\n  }}}}")
    numbers.FILE.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
    return 0


def _rounded(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=lambda digits: float(f"{float(digits):.9g}"))


def record_files() -> int:
    """Write what files look like; the hashes of the small data set only where it was built (`make pipeline`)."""
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        os.environ[paths.HOME_VARIABLE] = home
        found = files.everything() | {"archive": files.archive(), "small": files.read().get("small")}
    if files.SMALL.is_dir():
        found["small"] = files.tables(files.SMALL)
    files.FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(record_files() if sys.argv[1:] == ["files"] else record_models())
