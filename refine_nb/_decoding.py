"""One more character of every row, as a function on matrices: bit for bit what the modules of a plain model give.

A step of decoding is so small that modules, reshaping and gluing weights together cost as much as its products. A
`Decoder` prepares the weights of every block once, and lays out once what several rows of a forked cache share.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._attention import Rows


class Decoder:
    "Reads one id of every row into its cache, without gradients and dropout; the weights are those of its first step"

    def __init__(
        self,
        model: nn.Module,  # whose blocks are walked once, each with one slot
        rows: Rows,  # that was read, and forked at most once
    ):
        self.model, self.rows = model, rows
        self.layers = [_Layer(block) for block in model.blocks]
        self.shared = _shared(rows, len(self.layers)) if len(rows.segments) > 1 else []

    def __call__(self, ids: Tensor) -> Tensor:  # (b,) → logits (b v) of the character after each
        model, rows = self.model, self.rows
        rows.begin(ids[:, None])
        x = model.embed(ids[:, None], rows)[:, 0]
        for slot, layer in enumerate(self.layers):
            x = x + layer.out(self.attend(slot, layer.queries_keys_values(x)))
            x = x + layer.perceptron(x)
        rows.end()
        return model.head(model.norm(x))

    def attend(self, slot: int, qkv: Tensor) -> Tensor:  # (3 b h k) → (b, h·k)
        "Keep keys and values; what the queries take from all values so far"
        q, k, v = qkv
        own, (b, heads, width) = self.rows.segments[-1], q.shape
        keys, values, n = own.keys[slot], own.values[slot], own.length + 1
        keys[:, :, n - 1], values[:, :, n - 1] = k, v
        keys, values = keys.flatten(0, 1)[:, :n], values.flatten(0, 1)[:, :n]
        logits = torch.bmm(q.reshape(-1, 1, width), keys.mT)
        if not self.shared: return torch.bmm(logits.mul_(width**-0.5).softmax(-1), values).view(b, -1)
        keys, shared = self.shared[slot]
        groups, s = (len(keys) // heads, b * heads // len(keys), heads), keys.shape[2]  # texts, rows of each, heads
        to_shared = torch.bmm(q.view(*groups, width).transpose(1, 2).reshape(len(keys), -1, width), keys)
        to_own = logits.view(*groups, n).transpose(1, 2)
        weights = torch.cat([to_shared.view(*to_own.shape[:-1], s), to_own], -1).mul_(width**-0.5).softmax(-1)
        of_shared = torch.bmm(weights[..., :s].flatten(0, 1), shared).view(*to_own.shape[:-1], width)
        of_own = torch.bmm(weights[..., s:].transpose(1, 2).reshape(-1, 1, n), values)
        return of_shared.transpose(1, 2).reshape(b, -1) + of_own.view(b, -1)


class _Layer:
    "A block's maps as matrices of the type that they multiply in"

    def __init__(self, block: nn.Module):
        a, self.heads, self.norm1, self.norm2 = block.attention, block.attention.n_heads, block.norm1, block.norm2
        self.qkv = _map(torch.cat([a.q.weight, a.k.weight, a.v.weight]), a.q.dtype)
        self.out, self.up, self.down = (_map(m.weight, m.dtype) for m in (a.out, block.up, block.down))

    def queries_keys_values(self, x: Tensor) -> Tensor:  # (b d) → (3 b h k)
        return self.qkv(_norm(self.norm1, x)).view(len(x), 3, self.heads, -1).transpose(0, 1)

    def perceptron(self, x: Tensor) -> Tensor: return self.down(F.gelu(self.up(_norm(self.norm2, x))))


def _norm(norm, x): return torch.layer_norm(x, norm.normalized_shape, norm.weight, None, norm.eps)


def _map(weight, dtype):
    "A linear map that multiplies in a type, and gives back the type that it was given"
    weight = weight.to(dtype).t()
    return lambda x: torch.mm(x, weight) if x.dtype == dtype else torch.mm(x.to(dtype), weight).to(x.dtype)


def _shared(rows, slots):
    "Keys (p·h, k, s) and values (p·h, s, k) of the segment that several rows share, for every slot"
    s = rows.segments[0]
    return [(s.keys[i][:, :, : s.length].mT.flatten(0, 1), s.values[i][:, :, : s.length].flatten(0, 1))
            for i in range(slots)]
