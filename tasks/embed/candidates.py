"""The best candidates of a block of rows, out of tiles of scores from several threads."""

from __future__ import annotations

import threading
from functools import reduce

import torch

__all__ = ["Candidates"]

_GROUP = 8  # points whose largest score counts once in a row's first bound


class Candidates:
    """The best points seen so far for each row of a block, and the bound that newcomers must beat.

    Several threads may offer tiles at once. One comparison with the bound settles nearly every score; those
    that pass wait until there are as many as are kept, and are then merged.

    Args:
        rows: of the block.
        keep: points kept per row.
        device: where the scores are.

    Attributes:
        scores: (rows, ≤ keep) float32, in no order; −inf where there are fewer.
        ids: (rows, ≤ keep) int32, numbers of the points; −1 where there are fewer.
        bound: (rows,) float32; no discarded point scores more.

    >>> best = Candidates(2, 1, torch.device("cpu"))
    >>> best.offer(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), 10, torch.empty(4, dtype=torch.bool))
    >>> best.merge()
    >>> best.ids.tolist()
    [[11], [10]]
    """

    def __init__(self, rows: int, keep: int, device: torch.device) -> None:
        self.rows, self.keep, self.device = rows, keep, device
        self.scores = torch.full((rows, 0), -torch.inf, device=device)
        self.ids = torch.full((rows, 0), -1, dtype=torch.int32, device=device)
        self.bound = torch.full((rows,), -torch.inf, device=device)
        self._untouched = True
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count = 0
        self._lock = threading.Lock()

    def offer(self, scores: torch.Tensor, first: int, mask: torch.Tensor) -> None:
        """Take in a tile.

        Args:
            scores: (rows, m) float32, row-major or the transposed view of such a tile.
            first: number of the first column's point.
            mask: bool scratch of at least rows · m elements.
        """
        if self._untouched:
            bound = self._first_bound(scores)
            with self._lock:
                self._untouched = False
                self.bound = torch.maximum(self.bound, bound)
        bound = self.bound  # if another thread raises it meanwhile, a few more pass than need to
        passes = mask.as_strided(scores.shape, scores.stride())
        torch.gt(scores, bound[:, None], out=passes)
        transposed = not passes.is_contiguous()
        tile = scores.T if transposed else scores  # as it lies in memory
        flat = _true_positions((passes.T if transposed else passes).view(-1))
        if len(flat) == 0:
            return
        row = flat.div(tile.shape[1], rounding_mode="floor")
        column = flat - row * tile.shape[1]
        if transposed:
            row, column = column, row
        newcomers = (row.int(), (column + first).int(), tile.view(-1)[flat])
        with self._lock:
            self._waiting.append(newcomers)
            self._count += len(flat)
            if self._count >= self.rows * self.keep:
                self.merge()

    def _first_bound(self, scores: torch.Tensor) -> torch.Tensor:
        """The keep-th largest of the maxima of disjoint groups: ``keep`` distinct candidates reach it."""
        groups = scores.shape[1] // _GROUP
        if groups < self.keep:
            return self.bound
        # element by element, so that a transposed tile is as quick as a row-major one
        largest = reduce(torch.maximum, scores[:, : groups * _GROUP].split(groups, dim=1))
        return largest.contiguous().topk(self.keep, dim=1).values[:, -1]

    def merge(self) -> None:
        """Add the waiting points to those kept, and keep the best."""
        if not self._waiting:
            return
        row, ids, scores = (torch.cat(part) for part in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        row, order = torch.sort(row, stable=True)
        row = row.long()
        counts = torch.bincount(row, minlength=self.rows)
        slot = torch.arange(len(row), device=self.device) - (counts.cumsum(0) - counts)[row]
        # row 0:  kept kept kept | new new  −inf
        # row 1:  kept kept kept | new −inf −inf      as wide as the row with the most newcomers needs;
        # row 2:  kept kept kept | new new  new       then the best of each row are kept
        size = (self.rows, int(counts.max()))
        new_scores = torch.full(size, -torch.inf, device=self.device)
        new_ids = torch.full(size, -1, dtype=torch.int32, device=self.device)
        new_scores[row, slot], new_ids[row, slot] = scores[order], ids[order]
        self.scores, self.ids = torch.cat([self.scores, new_scores], 1), torch.cat([self.ids, new_ids], 1)
        if self.scores.shape[1] > self.keep:
            self.scores, chosen = self.scores.topk(self.keep, dim=1)
            self.ids = self.ids.gather(1, chosen)
            self.bound = torch.maximum(self.bound, self.scores[:, -1])


def _true_positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of the true entries of a flat mask, most of which are false."""
    if len(mask) % 8:
        return mask.nonzero().view(-1)
    words = mask.view(torch.int64).nonzero().view(-1)  # eight entries at a time
    inner = mask.view(-1, 8)[words].nonzero()
    return words[inner[:, 0]] * 8 + inner[:, 1]
