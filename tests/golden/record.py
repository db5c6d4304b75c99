"""Record the golden numbers anew: ``python -m tests.golden.record``, after the `version` of a model was raised."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from spike_kit.models import MODELS
from tests.golden import numbers


def main() -> int:
    """Compute and write the numbers of all models; refuse changed numbers of an unchanged version."""
    torch.set_num_threads(1)
    before = numbers.read()
    after: dict[str, Any] = {}
    refused = []
    for model in MODELS:
        presets = {name: _rounded(numbers.computed(model, form)) for name, form in numbers.forms(model).items()}
        after[model] = {"version": numbers.version(model), "presets": presets}
        known = before.get(model, {"version": 0, "presets": {}})
        same_version = known["version"] == numbers.version(model)
        for name in presets.keys() & known["presets"]:
            changed = any(numbers.differences(presets[name], known["presets"][name]))
            if changed and same_version:
                refused.append(f"{model}/{name}")
            elif not changed:
                presets[name] = known["presets"][name]
    if refused:
        sys.stderr.write(f"nothing was written: raise `version` first, numbers changed: {', '.join(refused)}\n")
        return 1
    numbers.FILE.write_text(_as_json(after), encoding="utf-8")
    return 0


def _as_json(models: dict[str, Any]) -> str:
    """JSON with one line for every preset."""
    entries = []
    for model, entry in models.items():
        presets = ",\n".join(f"    {json.dumps(name)}: {json.dumps(found)}" for name, found in entry["presets"].items())
        entries.append(f'  {json.dumps(model)}: {{"version": {entry["version"]}, "presets": {{\n{presets}\n  }}}}')
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
