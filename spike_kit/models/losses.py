"""Loss terms shared by the models: recommendation losses, L2, and the pairwise matching of SPiKE."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.base import devices
from spike_kit.base.dense import times
from spike_kit.models.layers import normalized, normalized_backward, row_norms
from spike_kit.models.sparse import SparsePattern, count, spmm

RecommendationLoss = Literal["bpr", "softmax", "cosine_softmax"]
"""Choices of the recommendation loss: sampled BPR, softmax over all items, the same on cosines with temperature."""

Views = tuple[Tensor, Tensor]
"""Rows of users ``[U, d]`` and items ``[I, d]``."""

CHUNK_ROWS = 64
"""Fewest rows of one product of the softmax losses, whatever `spike_kit.base.devices.Chunks` says."""


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """BPR loss (Rendle et al., UAI 2009): mean of ``softplus(negative - positive)`` over scores ``[B]``."""
    return functional.softplus(negative - positive).mean()


def softmax(
    users: Tensor,
    items: Tensor,
    user_ids: Tensor,
    positives: Tensor,
    candidates: Tensor | None = None,
    *,
    tf32: bool = False,
) -> Tensor:
    """Cross entropy of each interaction's item among the candidates: mean of ``logsumexp(scores) - score of the item``.

    The scores are made and used up in chunks that stay in the cache, and their gradients are taken on the way, so that
    no ``[B, I]`` tensor exists. The first part depends on the user only, so a batch costs one row of scores per
    distinct user, however large it is.

    Parameters
    ----------
    users, items
        Rows of all users ``[U, d]`` and items ``[I, d]``.
    user_ids, positives
        User and item of every interaction, ``[B]``.
    candidates
        Items to compare with, ``[k]`` ascending, all positives among them; none: all items.
    tf32
        Whether CUDA may round the factors of the products to TF32.
    """
    if candidates is not None and candidates.shape[0] < items.shape[0]:
        items, positives = items.index_select(0, candidates), torch.searchsorted(candidates, positives)
    rows, row_ids = users, user_ids
    if user_ids.shape[0] < users.shape[0] and users.device.type != "meta":
        distinct, row_ids = user_ids.unique(return_inverse=True)
        rows = users.index_select(0, distinct)
    n_rows, n_items = rows.shape[0], items.shape[0]
    keys = (row_ids * n_items + positives).sort().values
    pattern = SparsePattern(keys // n_items, keys % n_items, n_rows, n_items)
    liked = spmm(pattern, users.detach().new_ones(user_ids.shape), items)
    with devices.tf32(tf32):
        masses = _LogSumExp.apply(rows, items, pattern.row_degree.to(users.dtype))
    return (masses - (rows * liked).sum()) / user_ids.shape[0]


class _LogSumExp(torch.autograd.Function):
    """Sum over rows of ``weight * logsumexp(row @ items.T)``."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        to_users, to_items = torch.empty_like(users), torch.zeros_like(items.T)
        total = users.new_zeros((), dtype=torch.float64)
        size = max(CHUNK_ROWS, devices.chunks(items.device).loss_scores // items.shape[0])
        for start in range(0, users.shape[0], size):
            rows = slice(start, start + size)
            scores, weight = times(users[rows], items.T), weights[rows].unsqueeze(1)
            highest = scores.amax(1, keepdim=True)
            share = scores.sub_(highest).exp_()
            mass = share.sum(1, keepdim=True)
            total += ((mass.log() + highest) * weight).sum()
            scale = weight / mass
            to_users[rows] = times(share, items).mul_(scale)
            to_items += times((users[rows] * scale).T, share)
        ctx.save_for_backward(to_users, to_items.T)
        return total.to(users.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        to_users, to_items = ctx.saved_tensors
        return to_users * gradients[0], to_items * gradients[0], None


def contrast(one: Tensor, other: Tensor, ids: Tensor, temperature: float, candidates: Tensor | None = None) -> Tensor:
    """InfoNCE of the rows ``ids [B]`` of one view with the same rows of another, its candidates as negatives.

    Mean over the batch of ``log sum_x exp(cos(one_i, other_x) / temperature) - cos(one_i, other_i) / temperature``
    (van den Oord et al., 2018); no ``[B, n]`` tensor is kept.

    Parameters
    ----------
    one, other
        Two views of the same nodes, ``[n, d]``.
    candidates
        As in `softmax`.
    """
    return softmax(normalized(one) / temperature, normalized(other), ids, ids, candidates)


def contrasts(views: Sequence[Views], ids: Sequence[Tensor], temperature: float, items: Tensor) -> Tensor:
    """Sum of the `contrast` of two views of the users ``[U, d]`` and items ``[I, d]``.

    The first ``ids [B]`` are those of users, all others those of items (positives, negatives), whose candidates are
    ``items [k]``.
    """
    one, other = views
    parts = [contrast(one[0], other[0], ids[0], temperature)]
    parts += [contrast(one[1], other[1], chosen, temperature, items) for chosen in ids[1:]]
    return torch.stack(parts).sum()


def l2(*rows: Tensor) -> Tensor:
    """Half the sum of squares of all rows ``[B, d]``, divided by the batch size B."""
    batch_size = rows[0].shape[0]
    return 0.5 * torch.stack([part.square().sum() for part in rows]).sum() / batch_size


def counted_l2(*chosen: tuple[Tensor, Tensor]) -> Tensor:
    """`l2` of the rows that ids ``[B]`` choose from tables ``[n, d]``; no ``[B, d]`` tensor is made."""
    batch_size = chosen[0][1].shape[0]
    sums = [count(ids, table.shape[0]).to(table.dtype) @ table.square().sum(1) for table, ids in chosen]
    return 0.5 * torch.stack(sums).sum() / batch_size


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
    return _Matching.apply(graph_side, text_side)  # type: ignore[no-any-return]


class _Matching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph_side: Tensor, text_side: Tensor) -> Tensor:
        norms = [row_norms(side) for side in (graph_side, text_side)]
        a, b = graph_side / norms[0], text_side / norms[1]
        grams = [times(left.mT, right).double() for left, right in ((a, a), (b, b), (a, b))]
        of_graph, of_text, across = (gram.square().sum(dim=(-2, -1)) for gram in grams)
        squared = of_graph + of_text - 2 * across
        pairs = squared.numel() * graph_side.shape[-2] ** 2
        factor = (squared > 0).double()[..., None, None] * (4 / pairs)
        ctx.save_for_backward(a, b, *norms, *((gram * factor).to(a.dtype) for gram in grams))
        return (squared.clamp_min(0).sum() / pairs).to(graph_side.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b, a_norms, b_norms, of_graph, of_text, across = ctx.saved_tensors
        to_a = times(a, of_graph * gradients[0]).sub_(times(b, across.mT * gradients[0]))
        to_b = times(b, of_text * gradients[0]).sub_(times(a, across * gradients[0]))
        return normalized_backward(to_a, a, a_norms), normalized_backward(to_b, b, b_norms)
