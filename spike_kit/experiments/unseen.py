"""Items that came after training: a trained SPiKE scores them by their texts and facts, nothing is trained again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.data.dataset import Dataset, parts_of
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.experiments.run import Run
from spike_kit.models.spike import Spike
from spike_kit.profiles.encode import encode_texts

Fact = tuple[int | str, int | str] | tuple[int | str | None, int | str, int | str | None]
"""What links a new item: (relation, entity), or a triple with None in the place of the item; ids, or exact labels."""


def score_new(run: Run, texts: Mapping[str, str], triples: Sequence[Fact] = (), device: str = "cpu") -> pd.DataFrame:
    """Rank all users with train interactions for an item that came after the training.

    Parameters
    ----------
    run
        A finished run of SPiKE.
    texts
        The item's profile for each profile set of the run: both for a composed one.
    triples
        What links the item to known entities.
    device
        Where to encode and to score.

    Returns
    -------
    DataFrame
        rank, user, label, score; the best first.

    Raises
    ------
    ConfigError
        If the model scores no new items.
    DataError
        If a text is missing, empty or of another profile set, or a relation or entity is unknown.
    """
    fixed = with_new_item(run, texts, triples, device).fixed()
    return ranked_users(run.data, fixed.users @ fixed.items[-1])


def ranked_users(data: Dataset, scores: Tensor) -> pd.DataFrame:
    """Users with train interactions by ``scores [U]`` of all users: rank, user, label, score; the best first."""
    users = np.unique(data.split("train")["user"])
    labels = data.users["label"].to_numpy()[users]
    frame = pd.DataFrame({"user": users, "label": labels, "score": scores.cpu().numpy()[users]})
    frame = frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return frame.assign(rank=range(1, len(frame) + 1))[["rank", "user", "label", "score"]]


def with_new_item(run: Run, texts: Mapping[str, str], triples: Sequence[Fact] = (), device: str = "cpu") -> Spike:
    """The trained model of a run on the graph with one more item, which comes after the others; see `score_new`."""
    data, trained = run.data, run.model
    if not isinstance(trained, Spike) or not trained.config.new_items:
        raise ConfigError(f"{run.path.name} scores no items that came after its training", "choose a run of SPiKE")
    place, n_items = torch.device(device), len(data.items)
    vectors = None
    if trained.config.uses_text:
        vectors = _with_texts(data.vectors(run.config["profiles"], run.config["encoder"]), n_items, run, texts, device)
    elif texts:
        raise DataError(f"{run.path.name} uses no text, but texts of {some(texts)} were given", "leave them out")
    known = data.tables.triples.to_numpy()
    known = known + (known >= n_items) * np.array([1, 0, 1])
    own = np.array([_triple(fact, data) for fact in triples], dtype=known.dtype).reshape(-1, 3)
    graph = Graph.from_arrays(
        data.split("train")[["user", "item"]].to_numpy(),
        np.unique(np.concatenate([known, own]), axis=0),
        n_users=len(data.users),
        n_items=n_items + 1,
        n_entities=len(data.entities) + 1,
        n_relations=len(data.relations),
    )
    model = Spike(trained.config, graph.to(place), vectors, torch.Generator())
    tensors = trained.tensors()
    ids = tensors["entity_embedding"]
    grown = torch.cat([ids[:n_items], ids.new_zeros(1, ids.shape[1]), ids[n_items:]])
    model.load_tensors({name: tensor.to(place) for name, tensor in (tensors | {"entity_embedding": grown}).items()})
    return model.eval()


def _with_texts(
    vectors: ProfileVectors, n_items: int, run: Run, texts: Mapping[str, str], device: str
) -> ProfileVectors:
    """Profile vectors with those of one more item, encoded as those of the run were."""
    parts = parts_of(run.config["profiles"])
    if wrong := sorted(set(parts) ^ set(texts)):
        raise DataError(
            f"{run.path.name} was trained with profiles of {some(parts)}, but texts of {some(texts) or 'none'} were "
            f"given ({some(wrong)} is missing or surplus)",
            "give one text for each",
        )
    if empty := [part for part in parts if not str(texts[part]).strip()]:
        raise DataError(f"the text of {some(empty)} is empty", "write a profile")
    encoder = run.config["encoder"]
    rows = [encode_texts([texts[part]], encoder, device=device, progress=False)[0] for part in parts]
    row = torch.from_numpy(np.concatenate(rows)).to(vectors.entity.dtype).unsqueeze(0)
    if row.shape[1] != vectors.dim:
        raise DataError(f"{encoder} gives {row.shape[1]} dimensions, the run was trained with {vectors.dim}")
    return replace(vectors, entity=torch.cat([vectors.entity[:n_items], row, vectors.entity[n_items:]]))


def _triple(fact: Fact, data: Dataset) -> tuple[int, int, int]:
    """Head, relation and tail in the graph with one more item."""
    n_items = len(data.items)
    head, relation, tail = fact if len(fact) == 3 else (None, *fact)
    if (head is None) == (tail is None):
        raise DataError(f"{fact} must have None where the new item stands, and a known entity at the other end")
    entity = _number(tail if head is None else head, data.entities["label"], "entity")  # type: ignore[arg-type]
    entity += entity >= n_items
    number = _number(relation, data.relations["label"], "relation")
    return (n_items, number, entity) if head is None else (entity, number, n_items)


def _number(name: int | str, labels: pd.Series, what: str) -> int:
    """Number of a relation or entity that is given by its number or its exact label."""
    if isinstance(name, int):
        if not 0 <= name < len(labels):
            raise DataError(f"there is no {what} {name}", f"they are 0 to {len(labels) - 1}")
        return name
    found = np.flatnonzero(labels == name)
    if len(found) != 1:
        hint = f"give its number: {some(found.tolist())}" if len(found) else "give its label exactly as it is"
        raise DataError(f"{len(found) or 'no'} {what} has the label {name!r}", hint)
    return int(found[0])
