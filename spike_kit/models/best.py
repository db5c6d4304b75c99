"""The best items of rows of scores: one order on every device, and for lists of every length."""

import torch
from torch import Tensor

BLOCK = 8
"""Scores per block in the search for the best items of a row."""


def best_items(scores: Tensor, k: int, levels: int = 0) -> tuple[Tensor, Tensor]:
    """Best ``k`` scores and items of every row, ``[n, k]`` each, best first; equal scores by item id, ascending.

    So a shorter list is the beginning of a longer one. Where scores are -inf, items stand in any order. A NaN counts as
    the largest.

    Parameters
    ----------
    scores
        ``[n, w]``, w a multiple of ``BLOCK ** levels``; columns that stand for no item come last and hold -inf.
    k
        Length of the lists, at most the number of items.
    levels
        Levels of blocks (`block_levels`).
    """
    more = min(k + 1, scores.shape[1])  # the one after the last tells whether its score stands outside as well
    if levels:
        places = _candidates(scores, levels, more)
        best, order = scores.gather(1, places).topk(more)
        items = places.gather(1, order)
    else:
        best, items = scores.topk(more)
    tied = (best[:, 1:] == best[:, :-1]) & (best[:, 1:] > float("-inf"))
    best, items = best[:, :k], items[:, :k]
    rows, cut = (part.any(1).nonzero().flatten() for part in (tied, tied[:, k - 1 :]))
    if cut.numel():
        chosen = _first_of_equal(scores.index_select(0, cut), best[:, -1:].index_select(0, cut), k)
        items = items.index_copy(0, cut, chosen)
    if rows.numel():
        own = items.index_select(0, rows).sort(1).values
        order = scores[rows.unsqueeze(1), own].sort(dim=1, descending=True, stable=True).indices
        items = items.index_copy(0, rows, own.gather(1, order))
    return best, items


def block_levels(n_items: int, k: int, device: torch.device) -> int:
    """How often the search for k items may cut all into blocks before there are too few for it to pay.

    0 for few items, and where ``torch.topk`` is quick itself.
    """
    levels = 0
    while device.type == "cpu" and n_items // BLOCK ** (levels + 1) >= 4 * (k + 1):
        levels += 1
    return levels


def _candidates(values: Tensor, levels: int, k: int) -> Tensor:
    """Positions ``[n, k]`` of the k largest of each row of ``values [n, w]``, in any order, ties either way.

    Block j holds the positions j, j + b, j + 2b, ... of b blocks. The largest values lie in the blocks with the largest
    maxima, and these are found in the same manner. A NaN counts as largest.
    """
    if levels == 0:
        return values.topk(k, sorted=False).indices
    blocks = values.view(values.shape[0], BLOCK, -1)
    chosen = _candidates(blocks.amax(1), levels - 1, k)
    offered = blocks.gather(2, chosen.unsqueeze(1).expand(-1, BLOCK, -1)).flatten(1)
    place = offered.topk(k, sorted=False).indices
    return place // k * blocks.shape[2] + chosen.gather(1, place % k)


def _first_of_equal(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Items ``[n, k]`` of the best k in any order: of those with the k-th score ``last [n, 1]`` the smallest ids."""
    width = scores.shape[1]
    ids = torch.arange(width, dtype=torch.int32, device=scores.device)
    order = torch.where(scores == last, ids, torch.where(scores < last, width, ids - width))
    return order.topk(k, largest=False, sorted=False).indices
