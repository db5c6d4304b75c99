"""Loss terms shared by the models: recommendation losses, L2, and the pairwise matching of SPiKE."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

RecommendationLoss = Literal["bpr", "softmax", "cosine_softmax"]
"""Choices of the recommendation loss: sampled BPR, softmax over all items, the same on cosines with temperature."""


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """BPR loss (Rendle et al., UAI 2009): mean of ``softplus(negative - positive)`` over scores ``[B]``."""
    return functional.softplus(negative - positive).mean()


def recommendation_loss(
    kind: RecommendationLoss,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    all_items: Tensor,
    target: Tensor,
    temperature: float,
) -> Tensor:
    """Loss of ranking each user's positive item above others.

    Parameters
    ----------
    kind
        See `RecommendationLoss`.
    users, positives, negatives
        Rows of the batch, ``[B, d]`` each.
    all_items
        ``[I, d]``, used by the softmax losses.
    target
        Item id of each positive, ``[B]``.
    temperature
        Divides the cosines of ``cosine_softmax``.
    """
    if kind == "bpr":
        return bpr((users * positives).sum(1), (users * negatives).sum(1))
    if kind == "softmax":
        return functional.cross_entropy(users @ all_items.T, target)
    cosines = functional.normalize(users) @ functional.normalize(all_items).T
    return functional.cross_entropy(cosines / temperature, target)


def l2(*rows: Tensor) -> Tensor:
    """Half the sum of squares of all rows ``[B, d]``, divided by the batch size B."""
    batch_size = rows[0].shape[0]
    return 0.5 * torch.stack([part.square().sum() for part in rows]).sum() / batch_size


def matching(graph_side: Tensor, text_side: Tensor) -> Tensor:
    """Mean squared difference of two cosine matrices, without forming them (docs/method.md, section 4).

    With A and B the L2-normalised rows, ``||A A' - B B'||_F^2 = ||A'A||_F^2 + ||B'B||_F^2 - 2 ||A'B||_F^2``:
    time O(k d^2) and memory O(d^2) instead of O(k^2 d) and O(k^2). The small matrices are squared in float64 and
    the result is clamped at 0, because a float32 Gram matrix errs by about 3e-8.

    Parameters
    ----------
    graph_side, text_side
        ``[k, d]``, or ``[repeats, k, d]`` for several node samples at once.

    Returns
    -------
    Tensor
        Scalar in the type of ``graph_side``: the mean over repeats and over all k x k pairs.
    """
    a, b = functional.normalize(graph_side, dim=-1), functional.normalize(text_side, dim=-1)
    squared = _squared_gram(a, a) + _squared_gram(b, b) - 2 * _squared_gram(a, b)
    pairs = graph_side.shape[-2] ** 2
    return (squared.clamp_min(0).mean() / pairs).to(graph_side.dtype)


def _squared_gram(a: Tensor, b: Tensor) -> Tensor:
    return (a.mT @ b).double().square().sum(dim=(-2, -1))
