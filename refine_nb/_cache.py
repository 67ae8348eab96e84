"""The key–value cache behind `refine_nb.gpt`: what a model has read, in segments that share prefixes.

A cache is a list of segments. `fork(g)` freezes what was read so far as a trunk and opens a segment with g rows per trunk row,
so a prompt that g samples share is stored, and multiplied with, once: the g queries of a trunk row meet its keys in one matrix
product (bifurcated attention, Athiwaratkun et al. 2024, arXiv 2403.08845). Letters: b rows, h heads, t new positions,
s positions read before, k head width.
"""

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor


class _Segment:
    "Keys, values and ids of some rows over a stretch of positions, with room to grow"

    def __init__(self, n_layers: int, rows: int, n_heads: int, room: int, head_width: int, like: Tensor):
        self.rows, self.length = rows, 0
        self.ids = torch.empty(rows, room, dtype=torch.long, device=like.device)
        self.kv = like.new_empty(2, n_layers, rows, n_heads, room, head_width)

    def reserve(self, n: int) -> None:
        "Make room for n positions in all"
        room = self.ids.shape[1]
        if n <= room: return
        more = max(n, 2 * room) - room
        self.ids = F.pad(self.ids, (0, more))
        self.kv = F.pad(self.kv, (0, 0, 0, more))


class KVCache:
    "What a model has read: keys and values per layer, with `fork`, `rollback` and `gather`"

    def __init__(
        self,
        n_layers: int,  # layers of the model
        n_heads: int,  # heads a layer
        head_width: int,  # numbers a head
        rows: int,  # sequences read side by side
        room: int,  # positions to reserve at first; more are made when needed
        like: Tensor,  # any tensor of the model, for device and dtype
    ):
        self.shape, self.like = (n_layers, n_heads, head_width), like
        self.segments = [self._segment(rows, room)]

    def _segment(self, rows: int, room: int) -> _Segment:
        n_layers, n_heads, head_width = self.shape
        return _Segment(n_layers, rows, n_heads, max(1, room), head_width, self.like)

    @property
    def rows(self) -> int: return self.segments[-1].rows

    @property
    def length(self) -> int: return sum(s.length for s in self.segments)

    @property
    def stored(self) -> int:
        "Positions held in memory over all rows; a shared trunk counts once"
        return sum(s.rows * s.length for s in self.segments)

    @property
    def ids(self) -> Tensor:
        "(b, s) ids read so far by every row"
        return torch.cat([s.ids[:, : s.length].repeat_interleave(self.rows // s.rows, 0) for s in self.segments], 1)

    def fork(self, g: int) -> "KVCache":
        "Continue every row g times; what was read so far is shared, not copied. Rows are ordered (row, copy)."
        if g < 1: raise ValueError(f"a fork into {g} rows is none")
        if g > 1: self.segments.append(self._segment(self.rows * g, 16))
        return self

    def rollback(self, t: int) -> "KVCache":
        "Forget everything from position t on"
        if not 0 <= t <= self.length: raise ValueError(f"cannot roll back to position {t}: {self.length} were read")
        for s in self.segments: s.length, t = min(s.length, t), max(0, t - s.length)
        return self

    def gather(self, rows: Tensor) -> "KVCache":
        "Keep these rows, in this order, repetition allowed; what they shared is copied to each of them"
        if len(rows) == 0 or not 0 <= int(rows.min()) <= int(rows.max()) < self.rows: raise ValueError(f"rows {rows.tolist()} are not all among the {self.rows} of the cache")
        n, flat = self.length, self._segment(len(rows), self.length)
        flat.length, flat.ids[:, :n] = n, self.ids[rows]
        start = 0
        for s in self.segments:
            flat.kv[..., start : start + s.length, :] = s.kv[..., : s.length, :].index_select(2, rows // (self.rows // s.rows))
            start += s.length
        self.segments = [flat]
        return self

    def part(self, start: int, stop: int) -> "KVCache":
        "A view of some rows of an unforked cache, to read prompts a few rows at a time; call `advance` on the whole afterwards"
        if len(self.segments) > 1: raise ValueError("a forked cache has no parts")
        view, (s,) = copy(self), self.segments
        narrow = copy(s)
        narrow.rows, narrow.ids, narrow.kv = stop - start, s.ids[start:stop], s.kv[:, :, start:stop]
        view.segments = [narrow]
        return view

    def read(self, ids: Tensor) -> None:
        "Note the ids that the coming pass reads; `attend` fills in their keys and values, `advance` ends the pass"
        s, t = self.segments[-1], ids.shape[1]
        if ids.shape[0] != s.rows: raise ValueError(f"{ids.shape[0]} rows do not continue a cache of {s.rows}")
        s.reserve(s.length + t)
        s.ids[:, s.length : s.length + t] = ids

    def advance(self, t: int) -> None:
        "End a pass over t positions"
        self.segments[-1].length += t

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        "Store k, v (b h t k) of a layer and let q attend to everything read and, causally, to the new positions"
        s, t = self.segments[-1], q.shape[2]
        s.kv[0, layer, :, :, s.length : s.length + t], s.kv[1, layer, :, :, s.length : s.length + t] = k, v
        if self.length == 0: return F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        spans = [(s, s.length + (t if s is self.segments[-1] else 0)) for s in self.segments]
        spans = [(s, n) for s, n in spans if n]
        scores = torch.cat([_ungroup(_group(q, s.rows) @ s.kv[0, layer, :, :, :n].mT, q.shape) for s, n in spans], -1)
        scores = scores * q.shape[-1] ** -0.5
        if t > 1: scores = scores + F.pad(q.new_full((t, t), -torch.inf).triu(1), (scores.shape[-1] - t, 0))
        weights = scores.softmax(-1).split([n for _, n in spans], -1)
        return sum(_ungroup(_group(w, s.rows) @ s.kv[1, layer, :, :, :n], q.shape) for w, (s, n) in zip(weights, spans))


def _group(x: Tensor, rows: int) -> Tensor:
    "(rows · g, h, t, n) → (rows, h, g · t, n): the g rows of a trunk row side by side"
    if x.shape[0] == rows: return x
    return x.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)


def _ungroup(x: Tensor, shape: torch.Size) -> Tensor:
    "The inverse of `_group`, back to as many rows and positions as `shape` (b, h, t, …) has"
    if x.shape[0] == shape[0]: return x
    return x.unflatten(2, (-1, shape[2])).transpose(1, 2).flatten(0, 1)
