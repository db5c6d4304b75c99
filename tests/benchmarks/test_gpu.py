"""`make gpu`: its dry run, and that whatever goes wrong in a stage is reported."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from benchmarks import gpu, gpu_checks, gpu_speed
from benchmarks.gpu import FAILED, PASSED, SKIPPED, STAGES, Stage, report
from benchmarks.gpu_checks import CheckError, Found, GpuSetup, SkippedError, difference, moved
from benchmarks.gpu_speed import waits
from spike_kit.base.paths import HOME_VARIABLE
from spike_kit.base.seeds import torch_generator
from spike_kit.models import MODELS
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.models.layers import row_norms
from spike_kit.training import loop

QUICK = GpuSetup(device="cpu", quick=True)


def good(setup: GpuSetup) -> Found:
    return "all | well", {"pid": os.getpid(), "device": setup.device}


def raising(setup: GpuSetup) -> Found:
    raise CheckError("other bits", {"failed": {setup.device: "why"}})


def dying(setup: GpuSetup) -> Found:
    os._exit(7 if setup.quick else 8)


def hanging(setup: GpuSetup) -> Found:
    time.sleep(3600)
    return good(setup)


def skipping(setup: GpuSetup) -> Found:
    raise SkippedError("needs two GPUs")


@pytest.mark.pipeline
def test_the_dry_run_does_every_stage(tmp_path: Path) -> None:
    """Needs a Python that finds the package, not an installed one, and leaves nothing behind."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--out",
        str(tmp_path / "gpu.json"),
    ]
    root = Path(gpu.__file__).parents[1]
    environ = os.environ | {"PYTHONPATH": str(root), HOME_VARIABLE: str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=root)
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    stages: dict[str, dict[str, Any]] = written["stages"]
    assert {name: one["status"] for name, one in stages.items()} == dict.fromkeys(STAGES, PASSED), done.stdout
    assert done.returncode == 0
    assert (written["device"], written["quick"]) == ("cpu", True)
    found = {name: one["found"] for name, one in stages.items()}
    assert set(found["parity"]) == {f"{name}/{preset}" for name in MODELS for preset in MODELS[name].presets}
    trained = {f"{name}/recommended" for name, model in MODELS.items() if issubclass(model, TrainedRecommender)}
    assert set(found["first product"]) == set(found["determinism"]) == set(found["resume"]) == trained
    assert all(count > 0 for count in found["resume"].values())
    spike = found["synchronisations"]["1000 nodes/spike/recommended"]
    assert spike["total"] == sum(spike["lines"].values())
    assert found["synchronisations"]["1000 nodes/bprmf/recommended"]["total"] == 0
    assert found["kernels"]["2000 nodes/lightgcn/recommended"]["top_ms"]
    for stage, graph in (("steps, ml-100k", "1000 nodes"), ("steps, amazon-book", "2000 nodes")):
        timed = {f"{graph}/spike/{preset}" for preset in MODELS["spike"].presets} | {f"{graph}/lightgcn/recommended"}
        assert set(found[stage]) == timed
        assert all(0 < row["min_ms"] <= row["median_ms"] for row in found[stage].values())
        assert all(f"| {name} |" in done.stdout for name in timed)
    assert "coverage" in found["beyond"]["shown"]
    assert len(found["processes"]["losses"]) == 2
    assert all(f"| {name} | passed |" in done.stdout for name in STAGES)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["gpu.json"]


@pytest.mark.pipeline
def test_a_stage_that_raises_dies_or_hangs_is_reported_and_the_next_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {
        "first": Stage(good),
        "raising": Stage(raising),
        "second": Stage(good),
        "dying": Stage(dying),
        "hanging": Stage(hanging, 0.2),
        "skipping": Stage(skipping),
        "third": Stage(good),
    }
    monkeypatch.setattr(gpu, "STAGES", stages)
    out = tmp_path / "new" / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out)]) == 1
    outcomes = json.loads(out.read_text(encoding="utf-8"))["stages"]
    assert list(outcomes) == list(stages)
    statuses = [outcome["status"] for outcome in outcomes.values()]
    assert statuses == [PASSED, FAILED, PASSED, FAILED, FAILED, SKIPPED, PASSED]
    assert outcomes["raising"]["said"] == "CheckError: other bits"
    assert outcomes["raising"]["found"] == {"failed": {"cpu": "why"}}
    assert "in raising" in outcomes["raising"]["traceback"]
    assert "exit code 7" in outcomes["dying"]["said"]
    assert "more than" in outcomes["hanging"]["said"]
    assert len({outcomes[name]["found"]["pid"] for name in ("first", "second", "third")} | {os.getpid()}) == 4
    shown = capsys.readouterr().out
    assert "| raising | FAILED |" in shown
    assert "all \\| well" in shown


@pytest.mark.pipeline
def test_what_there_is_no_time_for_failed(tmp_path: Path) -> None:
    setup = QUICK.replace(out=tmp_path / "gpu.json", minutes=1e-9)
    assert not report(setup, {"late": Stage(good)})
    assert "no time left" in (tmp_path / "gpu.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "tpu"])
def test_without_a_gpu_it_says_so_and_how_to_do_without(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--device", device, "--out", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr().err
    assert ("no CUDA device" if device.startswith("cuda") else "unknown device 'tpu'") in said
    assert "make gpu DEVICE=cpu" in said
    assert list(tmp_path.iterdir()) == []


ONES = {"a": torch.ones(4), "b": torch.full((3,), 1e-8)}


@pytest.mark.parametrize(
    ("change", "small", "expected"),
    [
        ({}, 0.0, 0.0),
        ({"a": torch.tensor([1.0, 1.0, 1.0, 1.02])}, 0.0, 0.01),
        ({"b": torch.full((3,), 3e-8)}, 0.0, None),
        ({"b": torch.full((3,), 3e-8)}, 1e-3, 1.7e-5),
        ({"a": torch.full((4,), torch.nan)}, 1e-3, None),
        ({"a": torch.full((4,), torch.inf)}, 1e-3, None),
        ({"a": -torch.ones(4)}, 1e-3, None),
        ({"c": torch.ones(1)}, 1e-3, None),
    ],
)
def test_differences_count_beside_the_length_of_a_tensor(
    change: dict[str, torch.Tensor], small: float, expected: float | None
) -> None:
    if expected is None:
        with pytest.raises(CheckError, match="expected a, b" if "c" in change else next(iter(change))):
            difference(ONES, ONES | change, 0.011, small)
    else:
        assert difference(ONES, ONES | change, 0.011, small) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("form", [("spike", "recommended"), ("lightgcn", "recommended"), ("popularity", "recommended")])
def test_parity_fails_where_a_device_computes_something_else(
    form: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_checks._differences(QUICK, *form) == 0
    built, times = gpu_checks.build, iter(range(2))

    def other(*arguments: Any) -> Any:
        """The second model, which is that of the device, gives something a little larger."""
        model, factor = built(*arguments), 1 + 0.01 * next(times)
        name = "training_losses" if isinstance(model, TrainedRecommender) else "score"
        method = getattr(model, name)

        def larger(*given: Any) -> Any:
            value = method(*given)
            return {key: term * factor for key, term in value.items()} if isinstance(value, dict) else value * factor

        object.__setattr__(model, name, larger)
        return model

    monkeypatch.setattr(gpu_checks, "build", other)
    with pytest.raises(CheckError, match="allowed are 1e-04"):
        gpu_checks._differences(QUICK, *form)


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "recommended", lambda: [("bprmf", "recommended"), ("lightgcn", "recommended")])
    gpu_checks._plain.cache_clear()


@pytest.mark.usefixtures("one_model")
def test_determinism_and_resume_compare_trainings_that_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    said, found = gpu_checks.determinism(QUICK)
    assert "2 forms" in said
    assert gpu_checks.resume(QUICK)[1] == found == {"bprmf/recommended": 2, "lightgcn/recommended": 2}
    step, numbers = loop.training_step, iter(range(1, 1000))

    def drifting(model: Any, *others: Any) -> dict[str, torch.Tensor]:
        """The n-th step that is ever taken moves users by n thousandths."""
        terms = step(model, *others)
        model.user_embedding.data += next(numbers) / 1000
        return terms

    monkeypatch.setattr(loop, "training_step", drifting)
    gpu_checks._plain.cache_clear()
    for stage in (gpu_checks.determinism, gpu_checks.resume):
        with pytest.raises(
            CheckError, match="2 of 2 failed: bprmf/recommended: CheckError: other bits in user_embedding"
        ):
            stage(QUICK)


@pytest.mark.usefixtures("one_model")
def test_resume_fails_where_a_training_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, states = gpu_checks.fit, list[Path]()

    def forgetful(*arguments: Any, state: Path | None = None) -> Any:
        """The second training with a state finds another folder."""
        if state is not None:
            states.append(state)
            state = state / str(len(states))
        return fit(*arguments, state=state)

    monkeypatch.setattr(gpu_checks, "fit", forgetful)
    with pytest.raises(CheckError, match="did not go on from epoch 3"):
        gpu_checks.resume(QUICK)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x: x.nonzero(), {"outside the kit nonzero": 1}),
        (
            lambda x: (float(x.sum()), x.unique()),
            {"outside the kit _local_scalar_dense": 1, "outside the kit _unique2": 1},
        ),
        (lambda x: x[x > 0], {"outside the kit index": 1}),
        (lambda x: x.repeat_interleave(x.long()), {"outside the kit repeat_interleave": 1}),
        (lambda x: (x.index_select(0, torch.tensor([0])), x[:1], x + 1, row_norms(x.view(1, -1))), {}),
    ],
)
def test_what_a_gpu_would_be_waited_for_is_counted(work: Any, expected: dict[str, int]) -> None:
    counted: Counter[str] = Counter()
    with waits(torch.device("cpu"), counted):
        work(torch.tensor([1.0, 0.0, 2.0]))
    assert counted == expected


def test_waiting_is_counted_by_line_of_the_kit_in_backward_passes_too() -> None:
    counted: Counter[str] = Counter()
    steps = gpu_speed._steps(QUICK, "1000 nodes", "spike", "recommended")
    with waits(torch.device("cpu"), counted):
        next(steps)
    assert counted
    assert all(line.startswith("models/") for line in counted), counted


def test_cuda_says_itself_where_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    counted: Counter[str] = Counter()
    with pytest.raises(ZeroDivisionError), waits(torch.device("cuda"), counted):
        for message in ["called a synchronizing CUDA operation"] * 2 + ["something else"]:
            warnings.warn(message, stacklevel=1)
        _ = 1 / 0
    assert counted == {"outside the kit": 2}
    assert modes == ["warn", "default"]


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(("name", "computed"), [("lightgcl", "low_rank"), ("colakg", "neighbours"), ("kgrec", "")])
def test_a_step_on_the_device_meets_nothing_of_the_cpu(name: str, computed: str) -> None:
    """On "meta", which raises where it does."""
    given = gpu_checks.inputs(QUICK.small)
    one: Any = gpu_checks.build(name, "recommended", given, "cpu")
    assert [found for found in gpu_checks.COMPUTED if found in vars(one)] == [computed] * bool(computed)
    batch, draws = Batch(*torch.arange(24).split(8)), one.draw(torch_generator(0, "draws"))
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        other: Any = gpu_checks.build(name, "recommended", given, "meta")
        gpu_checks._align(one, other)
        terms = other.training_losses(moved(batch, "meta"), moved(draws, "meta"))
    assert {term.device.type for term in terms.values()} == {"meta"}


def test_draws_are_moved_with_all_they_hold_and_generators_are_left_behind() -> None:
    batch = Batch(*torch.arange(6).split(2))
    there: Any = moved({"a": [(batch, torch.Generator())], "b": 3}, "meta")
    (one, generator), number = there["a"][0], there["b"]
    assert (generator, number) == (None, 3)
    assert {tensor.device.type for tensor in vars(one).values() if tensor is not None} == {"meta"}
    assert batch.users.tolist() == [0, 1]
