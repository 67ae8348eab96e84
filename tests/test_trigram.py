"""n-gram references against counts by hand, and their numbers on Tiny Shakespeare"""
from collections import Counter

import pytest
import torch

from refine_nb.data import CharVocab, split_ids
from refine_nb.evaluation import evaluate
from refine_nb.trigram import NGram


def brute(text, order, chars):
    "P(c | h) by Witten–Bell from a Counter of substrings, as a function"
    grams = Counter(text[i : i + n] for n in range(1, order + 1) for i in range(len(text) - n + 1))

    def p(h, c):
        h = h[max(0, len(h) - order + 1) :]
        lower = p(h[1:], c) if h else 1 / len(chars)
        total, kinds = sum(grams[h + x] for x in chars), sum(grams[h + x] > 0 for x in chars)
        return (grams[h + c] + kinds * lower) / (total + kinds) if total else lower

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_every_order_against_counts(order):
    text, other = "abracadabra, a cabbage drab", "dab a grab, acre"
    vocab = CharVocab.from_text(text + other)
    model, p = NGram.fit(vocab.encode(text), len(vocab), order), brute(text, order, vocab.chars)
    for t in (text, other):
        got = model.log_probs(vocab.encode(t)[None])[0].exp()
        want = torch.tensor([[p(t[: i + 1], c) for c in vocab.chars] for i in range(len(t))])
        assert torch.allclose(got, want, atol=1e-6)


def test_windows_are_independent_rows():
    ids = torch.randint(5, (3, 40), generator=torch.Generator().manual_seed(0))
    model = NGram.fit(ids.flatten(), 5, 4)
    assert torch.equal(model.log_probs(ids)[1:2], model.log_probs(ids[1:2]))
    assert torch.equal(model.topk(ids, 2)[..., 0], model.log_probs(ids).argmax(-1))


@pytest.mark.parametrize("ids, n, order, message", [([0, 1], 2, 0, "below 1"), ([0, 1], 2, 3, "no 3-gram"), ([0, 2], 2, 1, "do not fit"), ([-1, 0], 2, 1, "do not fit")])
def test_refusals(ids, n, order, message):
    with pytest.raises(ValueError, match=message): NGram.fit(torch.tensor(ids), n, order)


def test_tinyshakespeare_numbers(tinyshakespeare):
    vocab = CharVocab.from_text(tinyshakespeare.text)
    fit, held_out = split_ids(vocab.encode(tinyshakespeare.text))
    accuracy = {n: 100 * evaluate(NGram.fit(fit, len(vocab), n), held_out[None])["val_accuracy"] for n in (2, 3, 4)}
    assert accuracy == pytest.approx({2: 27.0, 3: 38.1, 4: 47.2}, abs=0.3)
