"""Ranking metrics with binary relevance, per user, at any cut-off, in float64.

Definitions are those of ir-measures (and of RecBole where it has the metric): ``R@k``, ``nDCG@k``, ``P@k``, ``RR@k``
and ``Success@k``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

METRICS = ("recall", "ndcg", "precision", "mrr", "hit_rate")
"""Names of the metrics; a column is named ``"recall@20"``, for example."""


def ranking_metrics(hits: Tensor, n_relevant: Tensor, cutoffs: Sequence[int]) -> dict[str, Tensor]:
    """Compute every metric at every cut-off for every user.

    Parameters
    ----------
    hits
        ``[n, K]`` bool: whether the item at each rank is relevant, best rank first. K may be smaller than a cut-off
        when there are fewer candidates; the missing ranks count as misses.
    n_relevant
        ``[n]``: number of relevant items of each user, at least 1.
    cutoffs
        Ranks k at which to measure.

    Returns
    -------
    dict
        ``"<metric>@<k>"`` to ``[n]`` float64: recall = hits / relevant; ndcg with gain 1 and discount log2(rank + 1),
        ideal over min(k, relevant); precision = hits / k; mrr = 1 / rank of the first hit within k, else 0;
        hit_rate = 1 if there is a hit within k.
    """
    widest = max(cutoffs)
    padded = torch.nn.functional.pad(hits.double(), (0, max(0, widest - hits.shape[1])))
    ranks = torch.arange(1, widest + 1, dtype=torch.float64, device=hits.device)
    discount = 1 / torch.log2(ranks + 1)
    found = padded.cumsum(1)
    gain = (padded * discount).cumsum(1)
    first = (padded / ranks).cummax(1).values
    ideal = discount.cumsum(0)
    relevant = n_relevant.long()
    result: dict[str, Tensor] = {}
    for k in cutoffs:
        result[f"recall@{k}"] = found[:, k - 1] / relevant
        result[f"ndcg@{k}"] = gain[:, k - 1] / ideal.index_select(0, relevant.clamp(1, k) - 1)
        result[f"precision@{k}"] = found[:, k - 1] / k
        result[f"mrr@{k}"] = first[:, k - 1]
        result[f"hit_rate@{k}"] = (found[:, k - 1] > 0).double()
    return result
