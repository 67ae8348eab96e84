"""What a position may look at: one object, handed to one pass of a model as `model(ids, cache)`.

A model tells its cache what it is about to read (`begin`), and asks it for everything that depends on what stands
before a position: its place in the text, the ids before it, attention, and what its parent predicted. Every application
of a block has a slot of its own. `end` makes a pass count; without it the pass was a trial, written over later.

Letters: b rows, t coming ids, h heads, k head width, g branches of a text, n ids a branch, u positions asked (t or 1).
"""

import math
from collections.abc import Callable
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cache:
    "One causal pass over texts side by side, of which nothing stays"

    length = 0  # positions that were read before, by passes that count
    chain = 0  # longest path through the coming ids: so many passes hand something on from parent to child

    def begin(self, ids: Tensor) -> None:
        "Announce the ids (b t) of a pass; refuse what does not fit"
        self.ids, self.chain = ids, ids.shape[1]

    def place(self, x: Tensor, table: nn.Embedding) -> Tensor:
        "Add its position to every id's embedding (b t d)"
        start, t = self.length, x.shape[1]
        if start + t > len(table.weight):
            raise ValueError(f"{start} + {t} characters do not fit a context of {len(table.weight)}: "
                             "shorten the window, or use `sample`, which moves it")
        return x + table.weight[start : start + t]

    def lagged(self, n: int) -> Tensor:
        "(b t n): every id, its parent, its parent's parent …; −1 before the text"
        return _lagged(self.ids, n, self.ids.shape[1])

    def attend(self, slot: int, q: Tensor, k: Tensor, v: Tensor, see: Callable | None = None) -> Tensor:
        "What the queries (b h u k) take from values; `see` is shown the logits, −∞ where a position may not look"
        causal = q.shape[2] == k.shape[2] > 1
        if see is not None: see(_logits(q, k, _no_later(k, k.shape[2], k.shape[2]) if causal else None))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def from_parent(self, name: str, new: Tensor) -> Tensor:
        "(b t …): what every position's parent has of `new`, or kept in an earlier pass; zeros where there is no parent"
        return torch.cat([torch.zeros_like(new[:, :1]), new[:, :-1]], 1)

    def keep(self, name: str, value: Tensor) -> None:
        "Let those who come later hear the value (b t …) of their parent"

    def end(self) -> None:
        "The pass counts"


class Text(Cache):
    "One causal pass that leaves keys and values: with their gradients, for branches that learn, or detached"

    def __init__(self, detach: bool = False): self.detach, self.kv, self.kept = detach, {}, {}

    def begin(self, ids):
        if self.length: raise ValueError(f"this Text has read {self.length} characters and is read once: take another")
        super().begin(ids)

    def attend(self, slot, q, k, v, see=None):
        self.kv[slot] = (k.detach(), v.detach()) if self.detach else (k, v)
        return super().attend(slot, q, k, v, see)

    def keep(self, name, value): self.kept[name] = value

    def end(self): self.length = self.ids.shape[1]


class Branches(Cache):
    "Branches that leave a text, packed side by side (b, g·n); they see the text up to there and themselves, and grow"

    def __init__(
        self,
        text: Text,  # that was read
        g: int = 1,  # branches of every row behind its end …
        at: Tensor | None = None,  # … or one behind each of these positions (b g)
    ):
        t = text.length
        if at is not None and (at.numel() == 0 or not 0 <= int(at.min()) <= int(at.max()) < t):
            raise ValueError(f"branches begin after positions 0 to {t - 1}, not {sorted(set(at.flatten().tolist()))}")
        self.text, self.at, self.g = text, at, g if at is None else at.shape[1]
        self.read, self.kv, self.kept = text.ids.new_empty(len(text.ids), self.g, 0), {}, {}
        self.beyond = None if at is None else torch.arange(t, device=at.device) > at[..., None]  # (b g t), not seen

    def begin(self, ids):
        if len(ids) != len(self.text.ids) or ids.shape[1] == 0 or ids.shape[1] % self.g:
            raise ValueError(f"ids of shape {tuple(ids.shape)} are not {self.g} branches of {len(self.text.ids)} texts")
        super().begin(ids)
        self.new, self.chain = {}, ids.shape[1] // self.g

    def place(self, x, table):
        n, context = self.chain, len(table.weight)
        begin = self.text.length if self.at is None else int(self.at.max()) + 1
        if begin + self.length + n > context:
            end = f"{self.length + n} characters after position {begin - 1}"
            raise ValueError(f"a branch of {end} does not fit a context of {context}")
        start = begin + self.length
        if self.at is None:
            return (x.unflatten(1, (self.g, n)).flatten(0, 1) + table.weight[start : start + n]).reshape(x.shape)
        return x + table((self.at[..., None] + 1 + self.length + torch.arange(n, device=x.device)).flatten(1))

    def lagged(self, n):
        before = F.pad(self.text.ids, (n - 1, 0), value=-1)  # position p stands at p + n − 1
        if self.at is None: seen = before[:, None, before.shape[1] - (n - 1) :].expand(-1, self.g, -1)
        else: seen = torch.stack([before.gather(1, self.at + 1 + i) for i in range(n - 1)] or [self.at[:, :0]], -1)
        if n == 1: seen = self.read[..., :0]
        rows = torch.cat([seen, self.read, self.ids.unflatten(1, (self.g, -1))], -1)
        return _lagged(rows.flatten(0, 1), n, self.chain).reshape(*self.ids.shape, n)

    def attend(self, slot, q, k, v, see=None):
        keys, values = self.text.kv[slot]
        own_q, own_k, own_v = (z.unflatten(2, (self.g, -1)) for z in (q, k, v))
        if self.length: own_k, own_v = (torch.cat([old, new], -2) for old, new in zip(self.kv[slot], (own_k, own_v)))
        self.new[slot] = own_k, own_v
        to_text, own = (q @ keys.mT).unflatten(2, (self.g, -1)), own_q @ own_k.mT
        if self.beyond is not None: to_text = to_text.masked_fill(self.beyond[:, None, :, None], -torch.inf)
        logits = torch.cat([to_text, own + _no_later(q, *own.shape[-2:])], -1) * q.shape[-1] ** -0.5
        if see is not None: see(logits)
        text, own = logits.softmax(-1).tensor_split([keys.shape[2]], -1)
        return text.flatten(2, 3) @ values + (own @ own_v).flatten(2, 3)

    def from_parent(self, name, new):
        known = self.kept if self.length else self.text.kept
        if name not in known: raise ValueError(f"the text was read without keeping {name!r}, which its branches need")
        if self.length: first = known[name]
        elif self.at is None: first = known[name][:, -1:].expand(-1, self.g, *known[name].shape[2:])
        else: first = known[name][torch.arange(len(self.at), device=self.at.device)[:, None], self.at]
        return torch.cat([first[:, :, None], new.unflatten(1, (self.g, -1))[:, :, :-1]], 2).flatten(1, 2)

    def keep(self, name, value): self.kept[name] = value.unflatten(1, (self.g, -1))[:, :, -1]

    def end(self):
        self.kv, self.length = self.new, self.length + self.chain
        self.read = torch.cat([self.read, self.ids.unflatten(1, (self.g, -1))], -1)


class Ahead(Branches):
    "A branch of one id behind every position of a text, without gradients; each pass looks anew"

    def __init__(self, text: Text):
        super().__init__(text, at=torch.arange(text.length, device=text.ids.device).expand_as(text.ids))

    def begin(self, ids):
        if torch.is_grad_enabled(): raise ValueError("Ahead has no gradients: take torch.no_grad(), or Branches")
        super().begin(ids)
        if self.chain != 1: raise ValueError(f"{self.chain} ids behind every position: Ahead reads one, Branches more")

    def attend(self, slot, q, k, v, see=None):
        y, log_sum = _causal(q, *self.text.kv[slot])
        own = (q * k).sum(-1) * q.shape[-1] ** -0.5
        return torch.lerp(y, v, torch.sigmoid(own - log_sum)[..., None])  # the share of one more logit in the softmax

    def keep(self, name, value): pass

    def end(self): pass


class Tree(Cache):
    "One pass over packed trees of one shape, under a mask"

    def __init__(
        self,
        parent: Tensor,  # (t,) of every id, −1 for a first one
        mask: Tensor,  # (t t) who may look at whom
    ):
        self.parent, self.mask, self.depth = parent, mask, mask.sum(1) - 1
        self.deepest = int(self.depth.max()) + 1

    def begin(self, ids):
        n = len(self.parent)
        if ids.shape[1] != n: raise ValueError(f"{ids.shape[1]} characters are no tree of {n}")
        self.parent, self.mask, self.depth = (z.to(ids.device) for z in (self.parent, self.mask, self.depth))
        super().begin(ids)
        self.chain = self.deepest

    def place(self, x, table):
        if self.chain > len(table.weight):
            raise ValueError(f"a tree of depth {self.chain} does not fit a context of {len(table.weight)}")
        return x + table(self.depth)

    def lagged(self, n):
        at, out = torch.arange(len(self.parent), device=self.ids.device), []
        for _ in range(n):
            out.append(self._at(at, self.ids, -1))
            at = self._at(at, self.parent[None], -1)[0]
        return torch.stack(out, -1)

    def _at(self, at, values, without):
        "The values at these positions; `without` where a position is −1"
        return torch.where((at >= 0).view(-1, *[1] * (values.ndim - 2)), values[:, at.clamp(min=0)], without)

    def attend(self, slot, q, k, v, see=None):
        if see is not None:
            see(_logits(q, k, torch.zeros_like(self.mask, dtype=q.dtype).masked_fill(~self.mask, -torch.inf)))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def from_parent(self, name, new): return self._at(self.parent, new, 0.0)

    def end(self): self.length = len(self.parent)


class _Segment:
    "Keys, values and ids of some rows over a stretch of positions, with room to grow"

    def __init__(self, rows: int, ids: Tensor, keys: list[Tensor] | Tensor, values: list[Tensor] | Tensor,
                 length: int = 0):
        self.rows, self.ids, self.keys, self.values, self.length = rows, ids, keys, values, length
        self.kept, self.whole, self.within = {}, rows, None  # by name: (whole, room, …); which of the whole's rows

    def reserve(self, n: int) -> None:
        "Make room for n positions in all"
        room = self.ids.shape[1]
        if n <= room: return
        if self.within is not None: raise ValueError(f"a part of a cache does not grow: reserve {n} in the whole")
        more = max(n, 2 * room) - room
        self.ids, self.keys, self.values = (F.pad(self.ids, (0, more)), F.pad(self.keys, (0, 0, 0, more)),
                                            F.pad(self.values, (0, 0, 0, more)))
        self.kept = {name: _longer(value, more) for name, value in self.kept.items()}

    def put(self, name: str, value: Tensor) -> None:
        "Keep a value (rows t …) of the positions that come"
        if name not in self.kept: self.kept[name] = value.new_zeros(self.whole, self.ids.shape[1], *value.shape[2:])
        self.kept[name][self.within or slice(None), self.length : self.length + value.shape[1]] = value

    def last(self, name: str) -> Tensor:
        "(rows …) of the last position"
        return self.kept[name][self.within or slice(None), self.length - 1]

    def part(self, start: int, stop: int) -> "_Segment":
        "A view of some rows"
        out = copy(self)
        out.rows, out.within, out.ids = stop - start, slice(start, stop), self.ids[start:stop]
        out.keys, out.values = self.keys[:, start:stop], self.values[:, start:stop]
        return out


class Rows(Cache):
    """Texts side by side that are read on and on, without gradients, with `fork`, `rollback` and `gather`.

    They are a list of segments. `fork(g)` freezes what was read and opens a segment with g rows for each row before,
    so a prompt that g samples share is stored, and multiplied with, once: the g queries of a row meet its keys in one
    matrix product (bifurcated attention, Athiwaratkun et al. 2024, arXiv 2403.08845).
    """

    def __init__(
        self,
        slots: int,  # applications of a block in one pass of the model
        n_heads: int,  # heads a layer
        head_width: int,  # numbers a head
        rows: int,  # texts read side by side
        room: int,  # positions to reserve at first; more are made when needed
        like: Tensor,  # any tensor of the model, for device and dtype
    ):
        self.shape, self.like = (slots, n_heads, head_width), like
        self.segments = [self._segment(rows, room)]

    def _segment(self, rows: int, room: int) -> _Segment:
        slots, n_heads, head_width = self.shape
        keys, values = (self.like.new_empty(slots, rows, n_heads, max(1, room), head_width) for _ in range(2))
        return _Segment(rows, torch.empty(rows, max(1, room), dtype=torch.long, device=self.like.device), keys, values)

    @property
    def rows(self) -> int: return self.segments[-1].rows

    @property
    def length(self) -> int: return sum(s.length for s in self.segments)

    @property
    def stored(self) -> int:
        "Positions held in memory over all rows; a shared prefix counts once"
        return sum(s.rows * s.length for s in self.segments)

    @property
    def ids(self) -> Tensor:
        "(b, s) ids read so far by every row"
        return self._newest(self.length)

    def _newest(self, n: int) -> Tensor:
        "(b, ≤ n) the ids that every row read last"
        parts = []
        for s in reversed(self.segments):
            here = min(n, s.length)
            parts.append(s.ids[:, s.length - here : s.length].repeat_interleave(self.rows // s.rows, 0))
            n -= here
        return torch.cat(parts[::-1], 1)

    def kept(self, name: str) -> Tensor:
        "(b, s, …) what every position kept for those after it"
        parts = [s.kept[name][s.within or slice(None), : s.length].repeat_interleave(self.rows // s.rows, 0)
                 for s in self.segments if s.length]
        return torch.cat(parts, 1)

    def resume(self, text: Text, g: int = 1, room: int = 16) -> "Rows":
        "Begin behind a text that was read, with g rows for each of its own; several share its keys, nothing is copied"
        (s,), t = self.segments, text.length
        keys, values = zip(*(text.kv[slot] for slot in range(self.shape[0])))
        if g > 1:
            self.segments = [s := _Segment(s.rows, text.ids, [k.detach() for k in keys], [v.detach() for v in values])]
        else:
            s.reserve(t)
            s.ids[:, :t] = text.ids
            for slot in range(self.shape[0]):
                s.keys[slot, :, :, :t], s.values[slot, :, :, :t] = keys[slot].detach(), values[slot].detach()
        for name, value in text.kept.items(): s.put(name, value.detach())
        s.length = t
        return self.fork(g, room)

    def fork(self, g: int, room: int = 16) -> "Rows":
        "Continue every row g times, with room for more; what was read so far is shared. Rows are ordered (row, copy)."
        if g < 1: raise ValueError(f"a fork into {g} rows is none")
        if g > 1: self.segments.append(self._segment(self.rows * g, room))
        return self

    def rollback(self, t: int) -> "Rows":
        "Forget everything from position t on"
        if not 0 <= t <= self.length: raise ValueError(f"cannot roll back to position {t}: {self.length} were read")
        for s in self.segments: s.length, t = min(s.length, t), max(0, t - s.length)
        return self

    def gather(self, rows: Tensor) -> "Rows":
        "Keep these rows, in this order, repetition allowed; what they shared is copied to each of them"
        if len(rows) == 0 or not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise ValueError(f"rows {rows.tolist()} are not all among the {self.rows} of the cache")
        rows, flat = rows.to(self.like.device), self._segment(len(rows), self.length)
        ids = self.ids[rows]
        for s in self.segments:
            here, span = rows // (self.rows // s.rows), slice(flat.length, flat.length + s.length)
            for slot in range(self.shape[0]):
                flat.keys[slot, :, :, span] = s.keys[slot][here, :, : s.length]
                flat.values[slot, :, :, span] = s.values[slot][here, :, : s.length]
            for name, value in s.kept.items(): flat.put(name, value[here, : s.length])
            flat.length += s.length
        flat.ids[:, : flat.length] = ids
        self.segments = [flat]
        return self

    def part(self, start: int, stop: int) -> "Rows":
        "A view of some rows of an unforked cache, to read prompts a few rows at a time; then `advance` the whole"
        if len(self.segments) > 1: raise ValueError("a forked cache has no parts")
        view = copy(self)
        view.segments = [self.segments[0].part(start, stop)]
        return view

    def begin(self, ids):
        s, t = self.segments[-1], ids.shape[1]
        if len(ids) != s.rows: raise ValueError(f"{len(ids)} rows do not continue a cache of {s.rows}")
        s.reserve(s.length + t)
        s.ids[:, s.length : s.length + t] = ids
        self.coming, self.chain = ids, t

    def lagged(self, n): return _lagged(torch.cat([self._newest(n - 1), self.coming], 1), n, self.chain)

    def attend(self, slot, q, k, v, see=None):
        s, t = self.segments[-1], k.shape[2]
        s.keys[slot, :, :, s.length : s.length + t], s.values[slot, :, :, s.length : s.length + t] = k, v
        if self.length == 0: return super().attend(slot, q, k, v, see)
        spans = [(s, s.length + (t if s is self.segments[-1] else 0)) for s in self.segments]
        spans = [(s, n) for s, n in spans if n]
        logits = torch.cat([_ungroup(_group(q, s.rows) @ s.keys[slot][:, :, :n].mT, q.shape) for s, n in spans], -1)
        logits = logits * q.shape[-1] ** -0.5
        if q.shape[2] > 1: logits = logits + F.pad(_no_later(q, t, t), (logits.shape[-1] - t, 0))
        if see is not None: see(logits)
        weights = logits.softmax(-1).split([n for _, n in spans], -1)
        return sum(_ungroup(_group(w, s.rows) @ s.values[slot][:, :, :n], q.shape) for w, (s, n) in zip(weights, spans))

    def from_parent(self, name, new):
        filled = [s for s in self.segments if s.length]
        if not filled: return super().from_parent(name, new)
        if name not in filled[-1].kept:
            raise ValueError(f"what stands before was read without keeping {name!r}, which the coming ids ask for")
        first = filled[-1].last(name).repeat_interleave(self.rows // filled[-1].rows, 0)
        return torch.cat([first[:, None], new[:, :-1]], 1)

    def keep(self, name, value): self.segments[-1].put(name, value)

    def end(self): self.advance(self.chain)

    def advance(self, t: int) -> None:
        "Let t positions count"
        self.segments[-1].length += t


def honoured(model: nn.Module, cache: Cache, n: int) -> None:
    "Raises `TypeError` for a model that read n characters without asking the cache: it would be silently wrong"
    if cache.length != n:
        raise TypeError(f"a {type(model).__name__} does not read through {type(cache).__name__}: its `hidden` has to "
                        "begin and to end the cache")


class LargestLogit:
    "Keeps the largest logit of each head that it is shown; a copy of its module, and one that was pickled, has none"

    def __init__(self, beside: Callable | None = None): self.value, self.beside = None, beside  # shown the same too

    def __call__(self, logits: Tensor) -> None:
        if self.beside is not None: self.beside(logits)
        most = logits.detach().amax([d for d in range(logits.ndim) if d != 1])
        self.value = most if self.value is None else torch.maximum(self.value, most)

    def __deepcopy__(self, memo) -> None: return None

    def __reduce__(self): return type(None), ()


def _lagged(seen, n, t):
    "(b t n): the last t ids of each row and what stands before each; −1 before the text"
    return F.pad(seen, (n - 1, 0), value=-1).unfold(1, n, 1)[:, -t:].flip(-1)


def _no_later(like, n, s):
    "What is added to the logits (n, s) of the last n of s positions: −∞ for what comes later"
    return like.new_full((n, s), -torch.inf).triu(s - n + 1)


@torch.no_grad()
def _logits(q, k, added=None):
    "What a softmax is taken of"
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    return logits if added is None else logits + added


def _causal(q, k, v):
    "Causal attention, and the logarithm of the sum that its softmax divided by"
    if q.device.type == "cpu": return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    logits = q @ k.mT * q.shape[-1] ** -0.5 + _no_later(q, q.shape[2], q.shape[2])
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def _longer(value, more):
    "A tensor (rows, room, …) with more room"
    return torch.cat([value, value.new_zeros(value.shape[0], more, *value.shape[2:])], 1)


def _group(x, rows):
    "(rows · g, h, t, n) → (rows, h, g · t, n): the g rows of a shared row side by side"
    if x.shape[0] == rows: return x
    return x.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)


def _ungroup(x, shape):
    "The inverse of `_group`, back to as many rows and positions as `shape` (b, h, t, …) has"
    if x.shape[0] == shape[0]: return x
    return x.unflatten(2, (-1, shape[2])).transpose(1, 2).flatten(0, 1)
