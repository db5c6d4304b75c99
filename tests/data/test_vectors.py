from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spike_kit.base.errors import DataError
from spike_kit.data.vectors import ProfileVectors, normalised
from spike_kit.profiles.encode import Reduction, principal_components

FACTS = {f"fact {n}": f"value {n}, “quoted”" for n in range(8)}


@pytest.fixture
def vectors() -> ProfileVectors:
    generator = torch.Generator().manual_seed(0)
    return ProfileVectors(torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator))


def test_the_same_vectors_and_facts_give_the_same_bytes(vectors: ProfileVectors, tmp_path: Path) -> None:
    turned = dict(reversed(FACTS.items()))
    written = []
    for facts in (FACTS, FACTS, turned, {**FACTS, "fact 0": "another"}):
        vectors.save(tmp_path / "v.safetensors", facts)
        written.append((tmp_path / "v.safetensors").read_bytes())
        assert ProfileVectors.metadata(tmp_path / "v.safetensors") == facts
    assert written[0] == written[1] == written[2] != written[3]
    assert torch.equal(ProfileVectors.load(tmp_path / "v.safetensors").entity, vectors.entity)


def test_facts_of_a_key_each_are_read_and_those_of_no_known_form_are_none(
    vectors: ProfileVectors, tmp_path: Path
) -> None:
    file = tmp_path / "v.safetensors"
    assert ProfileVectors.metadata(file) == {}
    file.write_bytes(b"damaged")
    assert ProfileVectors.metadata(file) == {}
    unknown = [{"spike_kit": text} for text in ("", "{", "[]", "1", '{"texts_sha256": ["x"]}', "[" * 100_000)]
    for stored in (FACTS, None, *unknown):
        save_file({"user": vectors.user}, file, metadata=stored)
        assert ProfileVectors.metadata(file) == (FACTS if stored is FACTS else {})
    with pytest.raises(DataError, match="holds no tensor entity"):
        ProfileVectors.load(file)


def test_rows_get_unit_length_and_zero_rows_stay_zero() -> None:
    rows = normalised(np.array([[3.0, 4.0], [0.0, 0.0], [1e-12, 0.0]]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [0, 0]])


def test_whitened_components_are_those_of_the_encoder_names() -> None:
    rng = np.random.default_rng(5)
    rows = (rng.normal(size=(300, 12)) @ rng.normal(size=(12, 30)) + 3).astype(np.float32)
    vectors = ProfileVectors(*torch.from_numpy(rows).split([100, 200]))
    centre, loadings = vectors.whitening(10)
    found = vectors.transformed(centre, loadings)
    expected, _ = principal_components(rows, Reduction(10, whiten=True), "here")
    assert torch.cat([found.user, found.entity]).numpy() == pytest.approx(expected, abs=1e-3)
    assert (found.user.shape, found.entity.shape, found.user.dtype) == ((100, 10), (200, 10), torch.float32)


def test_there_are_no_more_components_than_rows_and_constant_directions_score_zero() -> None:
    rows = torch.eye(6, 9)
    few = ProfileVectors(rows[:2], rows[2:])
    assert few.whitening(64)[1].shape == (9, 5)
    equal = ProfileVectors(torch.ones(3, 4), torch.ones(5, 4))
    found = equal.transformed(*equal.whitening(2))
    assert torch.equal(found.entity, torch.zeros(5, 2))
    flat = ProfileVectors(torch.randn(20, 4) * torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.zeros(20, 4))
    found = flat.transformed(*flat.whitening(4))
    scores = torch.cat([found.user, found.entity])
    assert scores.std(0)[:2].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert scores[:, 2:].abs().max() < 1e-3
