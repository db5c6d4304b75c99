"""Finished runs as tables: which runs belong together, and what their tables say."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch

import spike_kit as sk
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import train_interactions
from spike_kit.experiments.archive import read_archive, write_archive
from spike_kit.experiments.run import Run
from spike_kit.models import find_preset
from spike_kit.results import frames
from spike_kit.results.comparison import ablation_frame, comparison_markdown, comparison_table, profiles_frame
from spike_kit.results.frames import per_user_metric, results_table
from spike_kit.results.report import lists_markdown, overview, ranked_table, report
from spike_kit.results.significance import holm, paired_test
from spike_kit.results.tables import ablation_label, as_markdown, latex_table, run_label
from spike_kit.views.overview import Overview

Runs = dict[str, list[Run]]


def several(runs: Runs) -> list[Run]:
    return [one for group in runs.values() for one in group]


def changed(one: Run, name: str = "", **config: object) -> Run:
    """A run that differs in its configuration alone."""
    other = dataclasses.replace(one, path=one.path.with_name(name or one.path.name))
    parts = {part: getattr(one, part) for part in ("per_user", "metrics", "environment", "history")}
    other.__dict__.update(parts | {"config": one.config | config})
    return other


def test_seeds_are_averaged_and_settings_are_told_apart(runs: Runs) -> None:
    table = frames.results_table([*runs["spike"], *runs["low rho"]])
    label = run_label(runs["spike"][0])
    assert sorted(label.removeprefix("SPiKE ").split(", ")) == ["epochs=2", "eval_every=1"]
    assert table["model"].tolist() == [label, run_label(runs["low rho"][0])]
    assert "rho=0.25" in table["model"][1]
    assert table["seeds"].tolist() == [2, 1]
    values = [done.metrics["test"]["ndcg@20"] for done in runs["spike"]]
    assert table["ndcg@20"][0] == pytest.approx(np.mean(values))
    assert table["ndcg@20 sd"][0] == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(table["ndcg@20 sd"][1])
    other = changed(runs["popularity"][0], versions={"model": 0})
    assert list(frames.grouped_by_seed([*runs["popularity"], other])) == ["Popularity", "Popularity (2)"]
    with pytest.raises(ConfigError, match="no metric named 'nope@3'"):
        frames.results_table(runs["spike"], metrics=("nope@3",))


def test_users_are_averaged_over_seeds(data: Dataset, runs: Runs) -> None:
    means = per_user_metric(runs["bprmf"], "ndcg@20", "valid")
    assert len(means) == len(data.users)
    assert means.mean() == pytest.approx(np.mean([one.metrics["valid"]["ndcg@20"] for one in runs["bprmf"]]))
    fewer = changed(runs["bprmf"][1])
    vars(fewer)["per_user"] = fewer.per_user.iloc[:-1]
    for given, metric, message in (
        ([*runs["bprmf"], *runs["popularity"]], "ndcg@20", "more than the seed"),
        ([runs["bprmf"][0], fewer], "ndcg@20", "do not rank the same users"),
        (runs["bprmf"], "nope", "no metric named 'nope'"),
        ([], "ndcg@20", "no run"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            per_user_metric(given, metric)


def test_names_say_preset_and_text_where_they_are_unusual(runs: Runs) -> None:
    settings = find_preset("spike", "released_code")
    released = changed(
        runs["spike"][0],
        preset="released_code",
        model_settings=settings.model.model_dump(mode="json"),
        training_settings=settings.training.model_dump(mode="json") | {"epochs": 1},
    )
    assert run_label(released) == "SPiKE (released_code) epochs=1"
    other = changed(runs["spike"][0], encoder="other/encoder", possibly_leaky=True)
    assert run_label(other).endswith("encoder=other/encoder, possibly leaky profiles")
    assert len(frames.results_table([*runs["spike"], other])) == 2
    elsewhere = changed(runs["spike"][0], profiles="gpt", encoder="e5")
    assert ablation_label(elsewhere, runs["spike"][0]) == "profiles from gpt, encoded by e5"


def test_means_of_groups_come_from_their_users(data: Dataset, runs: Runs) -> None:
    halves = pd.Series(np.where(data.users["user"] < 20, "few", "many"), name="group")
    table = frames.group_means([*runs["bprmf"], *runs["popularity"]], halves, "recall@20", "valid")
    assert list(table) == ["few (20 users)", f"many ({len(data.users) - 20} users)"]
    means = list(table.loc[run_label(runs["bprmf"][0])])
    own = [one.per_user.query("split == 'valid' and user < 20")["recall@20"].mean() for one in runs["bprmf"]]
    assert means[0] == pytest.approx(np.mean(own))
    activity = pd.Series(np.where(data.users["user"] < 20, 1, 5))
    shown = frames.sparsity_frame(activity, runs["bprmf"], "recall@20", "valid", n=2)
    assert shown[["group", "users"]].to_numpy().tolist() == [["1", 20], ["5", len(data.users) - 20]]
    assert shown["mean"].tolist() == pytest.approx(means)
    assert ((shown["low"] <= shown["mean"]) & (shown["mean"] <= shown["high"])).all()


def test_results_have_intervals(data: Dataset, runs: Runs) -> None:
    several_runs = [*runs["popularity"], *runs["spike"]]
    frame = frames.results_frame(several_runs, split="valid")
    assert set(frame["interval"][frame["model"] == "Popularity"]) == {"95 % over users"}
    spike = frame[frame["model"].str.startswith("SPiKE") & (frame["metric"] == "ndcg@20")].to_dict("records")[0]
    values = [one.metrics["valid"]["ndcg@20"] for one in runs["spike"]]
    assert spike["interval"] == "sd over seeds"
    assert spike["high"] - spike["mean"] == pytest.approx(np.std(values, ddof=1))
    assert ((frame["low"] <= frame["mean"]) & (frame["mean"] <= frame["high"])).all()
    write_archive(several_runs, data)
    archived = frames.results_frame(read_archive(data.name))
    without = archived[archived["model"] == "Popularity"]
    assert set(without["interval"]) == {""}
    assert (without["low"] == without["mean"]).all()
    assert (without["high"] == without["mean"]).all()


def test_results_of_several_data_sets_keep_their_labels(runs: Runs) -> None:
    both = [*runs["popularity"], *(changed(one, dataset="other") for one in runs["popularity"])]
    frame = frames.results_frame(both)
    assert frame["dataset"].unique().tolist() == ["world", "other"]
    assert frame["model"].unique().tolist() == ["Popularity"]


def test_spike_and_the_best_others_on_validation_lead(runs: Runs) -> None:
    groups = frames.grouped_by_seed(several(runs))
    ours = [label for label in groups if label.startswith("SPiKE")]
    others = {label: frames.seed_means(group, split="valid").mean() for label, group in groups.items()}
    best = sorted(set(others).difference(ours), key=lambda label: -others[label])[:2]
    found = frames.leading(several(runs), 2)
    assert [*found] == [ours[0], *best]
    assert found == {label: groups[label] for label in found}
    assert [*frames.leading(runs["popularity"])] == ["Popularity"]


def test_ablations_are_compared_with_the_full_model(runs: Runs) -> None:
    full, others = frames.full_model(several(runs))
    assert full == runs["spike"]
    assert others == [*runs["without matching"], *runs["low rho"], *runs["high rho"]]
    frame = ablation_frame(full, others, split="valid")
    assert frame[["model", "seeds"]].to_dict("list") == {
        "model": ["w/o matching", "rho=0.25", "rho=1.0"],
        "seeds": [2, 1, 1],
    }
    pairs = ((runs["without matching"], full), (runs["low rho"], full[:1]), (runs["high rho"], full[:1]))
    tests = [paired_test(*(per_user_metric(group, "ndcg@20", "valid") for group in pair)) for pair in pairs]
    assert frame["difference"].tolist() == pytest.approx([test["difference"] for test in tests])
    assert frame["p"].tolist() == holm([test["p permutation"] for test in tests]).tolist()
    assert ablation_frame(full[1:], [*runs["low rho"], *runs["high rho"]]).empty
    with pytest.raises(DataError, match="was not run"):
        frames.full_model(others)


def test_tuned_runs_then_recommended_training_are_preferred(runs: Runs) -> None:
    for given in (several(runs), several(runs)[::-1]):
        models = dict.fromkeys(one.config["model"] for one in frames.main_runs(given))
        assert list(models) == ["popularity", "bprmf", "lightgcn", "spike"]
    assert frames.main_runs(several(runs))[-2:] == runs["spike"]
    preset = find_preset("spike").training.model_dump(mode="json")
    usual = changed(runs["spike"][0], training_settings=preset)
    assert frames.main_runs([*several(runs), usual])[-1:] == [usual]
    config = runs["spike"][0].config
    settings = config["model_settings"] | {"rho": 0.7}
    base = {"model_settings": settings, "training_settings": config["training_settings"]}
    tuned = changed(runs["spike"][0], "tuned", preset="tuned", base=base, **base)
    without = changed(tuned, "without", model_settings=settings | {"matching": "off"})
    known = [*several(runs), usual, tuned, without]
    assert frames.main_runs(known)[-1] == tuned
    better = changed(usual)
    vars(better)["metrics"] = {**usual.metrics, "valid": {**usual.valid, "ndcg@20": 1.0}}
    assert frames.main_runs([tuned, better])[-1] == better
    assert frames.full_model(known)[0] == runs["spike"]  # it has more ablations
    full, others = frames.full_model([usual, tuned, without])
    assert (full, others) == ([tuned], [without])
    assert ablation_frame(full, others)["model"].tolist() == ["w/o matching"]


def test_sensitivity_holds_everything_else_equal(runs: Runs) -> None:
    frame = frames.sensitivity_frame(several(runs))
    assert set(frame["setting"]) == {"rho", "matching"}
    rho = frame[frame["setting"] == "rho"]
    assert rho["value"].tolist() == [0.25, 0.5, 1.0]
    assert rho["seeds"].tolist() == [1, 2, 1]
    assert rho["mean"].iloc[1] == pytest.approx(np.mean([one.metrics["valid"]["ndcg@20"] for one in runs["spike"]]))
    assert frames.sensitivity_frame([*runs["popularity"], *runs["lightgcn"]]).empty


def test_costs_and_curves_are_those_of_the_runs(runs: Runs) -> None:
    frame = frames.efficiency_frame(runs["spike"])
    assert frame["seconds"].tolist() == pytest.approx([np.mean([one.metrics["seconds"] for one in runs["spike"]])])
    assert (frame["peak_gib"] > 0.05).all()
    unknown = changed(runs["spike"][0])
    unknown.__dict__["metrics"] = {**unknown.metrics, "peak_gib": None}
    assert np.isnan(frames.costs([unknown])["peak_gib"])
    curves = frames.curves_frame([*runs["popularity"], *runs["spike"]])
    assert curves[["seed", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert curves["value"][0] == runs["spike"][0].history["valid_ndcg@20"][0]


@pytest.mark.parametrize("model", ["ease", "itemknn", "text_ridge"])
def test_seconds_of_a_fit_that_was_not_timed_are_not_shown(runs: Runs, model: str) -> None:
    done = runs["popularity"][0]
    assert frames.costs([done])["seconds"] == done.metrics["seconds"]
    old, new = changed(done, model=model), changed(done, model=model)
    vars(old)["metrics"] = {name: value for name, value in done.metrics.items() if name != "listed"}
    assert np.isnan([*frames.costs([old]).values()]).all()
    assert frames.costs([old, new])["seconds"] == done.metrics["seconds"]


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"inject": False, "remove": False, "matching": "off"}, "SPiKE w/o any text"),
        ({"matching": "off"}, "SPiKE w/o matching"),
        ({"inject": False}, "SPiKE inject=False"),
        ({"matching": "off", "rho": 2.0}, "SPiKE rho=2.0, matching=off"),
    ],
)
def test_a_variant_has_the_name_of_the_ablation(runs: Runs, settings: dict[str, object], label: str) -> None:
    usual = find_preset("spike").training.model_dump(mode="json")
    one = changed(runs["spike"][0], training_settings=usual)
    assert run_label(one) == "SPiKE"
    named = changed(one, model_settings=one.config["model_settings"] | settings)
    assert run_label(named) == label


def test_remarks_stand_in_tables_and_comparisons(runs: Runs) -> None:
    table = frames.results_table([*runs["popularity"], *runs["lightgcn"]]).set_index("model")["remarks"]
    assert table["Popularity"] == ""
    assert re.fullmatch(
        r"best epoch \d+ of at most 12 \(2 of 2 runs\), few steps \(12\) \(2 of 2 runs\)", table.iloc[1]
    )
    compared = comparison_table([*runs["popularity"], *runs["lightgcn"]])
    assert compared.set_index("model")["remarks"].to_dict() == table.to_dict()
    assert f" {table.iloc[1]} |" in comparison_markdown(compared, "ndcg@20")


def on(one: Run, device: str) -> Run:
    """A run that was trained somewhere else."""
    other = changed(one)
    other.__dict__["environment"] = one.environment | {"device": device}
    return other


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("cuda:3 (NVIDIA A100 (MIG 1g.5gb))", "NVIDIA A100 (MIG 1g.5gb)"),
        ("cuda (Tesla T4)", "Tesla T4"),
        ("cpu (8 threads)", "cpu"),
    ],
)
def test_a_run_says_on_what_it_was_trained(runs: Runs, written: str, expected: str) -> None:
    one = on(runs["popularity"][0], written)
    assert one.device == expected
    assert f"\ntrained on {written}" in one.summary()


def test_devices_stand_in_every_table_that_compares_runs_of_several(data: Dataset, runs: Runs) -> None:
    same = [*runs["popularity"], *(on(one, "cpu (7 threads)") for one in runs["lightgcn"]), *runs["spike"]]
    activity = train_interactions(data)
    for table in (results_table(same), comparison_table(same)):
        assert not table["device"].any()
    assert "device" not in sk.table(same)
    assert "device" not in as_markdown(results_table(same)) + report("world", same, activity)
    assert "Device" not in latex_table(results_table(same))

    gpu = [on(runs["lightgcn"][0], "cuda:0 (Tesla T4)"), on(runs["lightgcn"][1], "cuda:1 (Tesla T4)")]
    mixed = [*runs["popularity"], *gpu, on(runs["spike"][0], "cuda (NVIDIA H200)"), *runs["spike"][1:]]
    mixed += [on(runs["low rho"][0], "cuda (NVIDIA H200)"), *runs["without matching"]]
    labels = [*frames.grouped_by_seed(mixed)]
    expected = dict(zip(labels, ["cpu", "Tesla T4", "NVIDIA H200, cpu", "NVIDIA H200", "cpu"], strict=True))
    for table in (results_table(mixed), comparison_table(mixed), sk.table(mixed)):
        assert dict(zip(table["model"], table["device"], strict=True)) == expected
    leaderboard = Overview(data, mixed).table
    assert dict(zip(leaderboard["model"], leaderboard["device"], strict=True)) == expected
    assert "NVIDIA H200, cpu" in comparison_markdown(comparison_table(mixed), "ndcg@20")
    assert r"\begin{tabular}{lrrrrrrl}" in latex_table(results_table(mixed))
    ablations = ablation_frame(mixed[3:5], mixed[5:]).set_index("model")["device"].to_dict()
    assert ablations == {"rho=0.25": "NVIDIA H200", "w/o matching": "cpu"}
    parts = report("world", mixed, activity).split("### ")[1:-1]
    rest = [part for part in parts if "Code" not in part.splitlines()[0]]
    assert all(("Tesla T4 |" if "Intervals" in part else "NVIDIA H200, cpu |") in part for part in rest)
    assert " NVIDIA H200, cpu |" in overview({"world": (mixed, activity)})
    lists = lists_markdown(data, mixed, "test", 5, torch.device("cpu")).split("lists of")[1:]
    assert [part.count("NVIDIA H200, cpu |") for part in lists] == [1, 1, 1]
    assert "device" in ranked_table(data, mixed, "test", ["ndcg"], [20], torch.device("cpu")).splitlines()[0]


def test_degrees_are_those_of_the_graph(data: Dataset) -> None:
    rows = {row["of"]: row for row in frames.graph_frame(data).to_dict("records")}
    users = {"of": "users, interactions", "degree": 10, "nodes": len(data.users), "share": 1.0}
    assert rows["users, interactions"] == users
    assert rows["items, triples"]["degree"] == 2
    assert (rows["genre"]["nodes"], rows["director"]["nodes"]) == (48, 48)


def valued(one: Run, ndcg: float, **config: object) -> Run:
    """A run with another configuration and another mean on validation."""
    other = changed(one, f"{one.path.name}-{ndcg}", **config)
    vars(other)["metrics"] = {**other.metrics, "valid": {**other.metrics["valid"], "ndcg@20": ndcg}}
    return other


def test_of_several_texts_the_one_with_most_seeds_and_then_the_best_on_validation_is_the_full_model(runs: Runs) -> None:
    template, words = [valued(one, 0.3) for one in runs["spike"]], {"profiles": "template+told"}
    told = [valued(one, value, **words) for one, value in zip(runs["spike"], (0.2, 0.5), strict=True)]
    full, others = frames.full_model([*template, *told])
    assert (full, others) == (told, template)
    assert ablation_frame(full, others)["model"].tolist() == ["profiles from template"]
    assert frames.full_model([*template, told[1]])[0] == template
    without = changed(told[0], model_settings=told[0].config["model_settings"] | {"inject": False, "remove": False})
    assert ablation_label(without, told[0]) == "w/o injection"
    assert ablation_label(without, template[0]) == "w/o injection, profiles from template+told"


def test_profile_sets_and_weights_are_compared_with_the_model_that_sees_no_text(runs: Runs) -> None:
    usual = find_preset("spike").training.model_dump(mode="json")
    settings = runs["spike"][0].config["model_settings"]
    blind = settings | {"inject": False, "remove": False, "matching": "off"}
    spike = [changed(one, training_settings=usual) for one in runs["spike"]]
    heavy = [changed(one, model_settings=settings | {"matching_weight": 9.0}, profiles="told") for one in spike]
    without = [changed(one, model_settings=blind, training_settings=usual) for one in runs["without matching"]]
    other = changed(spike[0], model_settings=settings | {"rho": 3.0})
    frame = profiles_frame([*heavy[:1], *spike, *without, other, *runs["low rho"], *runs["lightgcn"]], "recommended")
    assert frame["profiles"].tolist() == ["w/o any text", "template", "told"]
    assert frame["matching weight"].tolist()[1:] == [settings["matching_weight"], 9.0]
    assert frame["seeds"].tolist() == [2, 2, 1]
    expected = paired_test(*(per_user_metric(group, "ndcg@20", "test") for group in (spike, without)))
    assert frame["difference"][1] == pytest.approx(expected["difference"])
    assert np.isnan(frame["difference"][0])
    assert frame["valid"][0] == pytest.approx(np.mean([one.valid["ndcg@20"] for one in without]))
    assert profiles_frame(spike, "recommended").empty
