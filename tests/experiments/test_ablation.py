from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base.seeds import torch_generator
from spike_kit.experiments.ablation import ABLATIONS, changes, label, normalised
from spike_kit.models.base import Batch
from spike_kit.models.spike import RECOMMENDED as FULL
from spike_kit.models.spike import Spike, SpikeDraws
from tests.world import World


def test_every_row_is_another_model() -> None:
    found = [tuple(sorted(changes(FULL.replace(**row)).items())) for row in ABLATIONS.values()]
    assert len(set(found)) == len(ABLATIONS)
    assert [label(changes(FULL.replace(**row))) for row in ABLATIONS.values()] == list(ABLATIONS)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gamma": 0.7, "repeats": 3}, {}),
        ({"gamma": 0.7, "matching": "sampled"}, {"gamma": 0.7, "matching": "sampled"}),
        ({"matching_weight": 0.0}, {"matching": "off"}),
        ({"matching": "off", "matching_weight": 9.0}, {"matching": "off"}),
        ({"inject": False, "remove": False, "rho": 3.0}, {"inject": False, "remove": False}),
        ({"attention": "mean", "heads": 4}, {"attention": "mean"}),
        (
            {"user_profiles": False, "item_profiles": False, "auxiliary_profiles": False, "rho": 0.1},
            {"inject": False, "remove": False, "matching": "off"},
        ),
    ],
)
def test_settings_without_effect_are_dropped(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert changes(FULL.replace(**settings)) == expected


SWITCHES = ("user_profiles", "item_profiles", "auxiliary_profiles", "inject", "remove")
VALUES = {
    "matching": ["exact", "sampled", "off"],
    "attention": ["attention", "mean"],
    "matching_weight": [0.0, 0.5, 2.0],
    "rho": [0.5, 1.0],
    "gamma": [0.1, 0.5],
    "heads": [1, 2],
    "text_dropout": [0.1, 0.3],
}
choices = dict.fromkeys(SWITCHES, st.booleans()) | {name: st.sampled_from(options) for name, options in VALUES.items()}


@given(st.fixed_dictionaries(choices))
def test_a_normalised_model_is_the_same_model(world: World, settings: dict[str, Any]) -> None:
    given_one = FULL.replace(**settings, dim=4, message_dropout=0.0)
    normal = normalised(given_one)
    assert normalised(normal) == normal
    losses = []
    for config in (given_one, normal):
        model = Spike(config, world.graph, world.vectors, torch_generator(0, "init"))
        batch = Batch(*(torch.tensor([0, 1, 2]) for _ in range(3)))
        losses.append(model.training_losses(batch, SpikeDraws()))
    assert set(losses[0]) - {"matching"} == set(losses[1]) - {"matching"}
    total = [sum(float(term.detach()) for term in terms.values()) for terms in losses]
    assert total[0] == pytest.approx(total[1], abs=1e-6)
