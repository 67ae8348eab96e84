"""The network: causality, the cache against plain passes, sampling, precisions, and parity with GPT-2 where it is installed"""
import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

from refine_nb._attention import Rows
from refine_nb.gpt import ContextualGPT, GPTConfig, NGramEmbedding, choose, n_parameters, sample, set_precision


def random_ids(*shape): return torch.randint(11, shape, generator=torch.Generator().manual_seed(1))


def test_causality_by_gradient(model):
    "The loss at t has a gradient towards the embedding at s: zero for s > t, and only there"
    ids, seen = random_ids(1, 10), []
    handle = model.token.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad_()) or out.retain_grad())
    for t in range(10):
        seen.clear()
        model.log_probs(ids)[0, t, 3].backward()
        norms = seen[0].grad[0].norm(dim=-1)
        assert (norms[t + 1 :] == 0).all() and (norms[: t + 1] > 0).all()
    handle.remove()


def test_later_characters_change_nothing(model):
    ids = random_ids(2, 12)
    for t in range(1, 12):
        other = ids.clone()
        other[:, t:] = (other[:, t:] + 1) % 11
        assert torch.equal(model(ids)[:, :t], model(other)[:, :t])


@pytest.mark.parametrize("pieces", [[10], [1] * 10, [3, 4, 3], [9, 1], [1, 9]])
def test_cache_in_pieces(model, pieces):
    ids, cache = random_ids(2, 10), model.new_cache(2, room=1)
    got = torch.cat([model(part, cache) for part in ids.split(pieces, 1)], 1)
    assert torch.allclose(got, model(ids), atol=1e-5) and torch.equal(cache.ids, ids) and cache.length == 10


def test_fork_rollback_gather(model):
    "Two forks deep, against plain passes over the whole rows; every row a different text"
    ids = random_ids(12, 20)
    ids[:, :5] = ids[::6, :5].repeat_interleave(6, 0)  # 2 prompts × (2 × 3) continuations
    ids[:, 5:9] = ids[::3, 5:9].repeat_interleave(3, 0)
    cache = model.new_cache(2)
    model(ids[::6, :5], cache)
    model(ids[::3, 5:9], cache.fork(2))
    got = torch.cat([model(part, cache) for part in ids[:, 9:15].split([1, 5], 1)] if cache.fork(3) else [], 1)
    assert torch.allclose(got, model(ids[:, :15])[:, 9:], atol=1e-5)
    assert cache.stored == 2 * 5 + 4 * 4 + 12 * 6 and torch.equal(cache.ids, ids[:, :15])
    cache.rollback(7)  # into the first fork's segment: the rows stay twelve
    assert torch.allclose(model(ids[:, 7:18], cache), model(ids[:, :18])[:, 7:], atol=1e-5)
    rows = torch.tensor([11, 0, 0, 7])
    cache.rollback(12).gather(rows)
    assert torch.allclose(model(ids[rows, 12:], cache), model(ids[rows])[:, 12:], atol=1e-5)
    assert cache.rows == 4 and torch.equal(cache.ids, ids[rows])


def test_cache_refusals(model):
    cache = model.new_cache(2)
    model(random_ids(2, 5), cache)
    for call, message in [(lambda: cache.rollback(6), "position 6: 5 were read"), (lambda: cache.fork(0), "fork into 0"), (lambda: cache.gather(torch.tensor([2])), "not all among the 2"), (lambda: model(random_ids(3, 1), cache), "3 rows do not continue"), (lambda: model(random_ids(2, 20), cache), "5 \\+ 20 characters do not fit")]:
        with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("prompt, n, g", [(3, 12, 1), (3, 12, 4), (30, 4, 2), (20, 15, 2)])
def test_sampling_equals_sampling_without_a_cache(model, prompt, n, g):
    "The reference knows the rule for a full window (read the newest half again) and nothing about caches"
    ids, gen = random_ids(5, prompt), torch.Generator().manual_seed(7)
    out, start = ids.repeat_interleave(g, 0), max(0, prompt - 24)
    for _ in range(n):
        if out.shape[1] - start > 24: start = out.shape[1] - 12
        out = torch.cat([out, choose(model(out[:, start:])[:, -1], 0.8, 4, gen)[:, None]], 1)
    got = sample(model, ids, n, g, temperature=0.8, top_k=4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(got.flatten(0, 1), out)


def test_choose_is_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = choose(logits.expand(40_000, 4), temperature=2.0, top_k=3, generator=torch.Generator().manual_seed(0))
    want = (logits[:3] / 2).softmax(0)
    assert torch.allclose(draws.bincount(minlength=4)[:3] / 40_000, want, atol=0.01) and (draws < 3).all()
    assert (choose(logits.expand(5, 4), temperature=0.0) == 0).all()


@pytest.mark.parametrize("bad", [dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_k=0), dict(n=0), dict(g=0)])
def test_sample_refuses(model, bad):
    with pytest.raises(ValueError): sample(model, random_ids(1, 3), **dict(n=2) | bad)


def test_ngram_embedding_is_one_matrix_on_a_concatenation():
    torch.manual_seed(0)
    layer, ids = NGramEmbedding(3, 5, 8), torch.tensor([[4, 0, 2, 2]])
    torch.nn.init.normal_(layer.tables)
    onehot = F.one_hot(torch.tensor([[5, 5, 4], [5, 4, 0], [4, 0, 2], [0, 2, 2]]).flip(1), 6).float()  # newest first; 5 is "before the text"
    want = F.gelu(onehot.flatten(1) @ layer.tables.flatten(0, 1)) @ layer.out.weight.T
    assert torch.allclose(layer(ids)[0], want, atol=1e-6)
    rows = Rows(1, 1, 1, rows=1, room=8, like=ids)
    rows.begin(ids[:, :2])
    rows.end()
    rows.begin(ids[:, 2:])
    assert torch.allclose(layer(ids[:, 2:], rows)[0], want[2:], atol=1e-6)


def test_attention_logit_max_against_hooks(model):
    "Also: no dropout, no draw and no change of mode while training"
    ids, seen = random_ids(2, 9), []
    hooks = [b.attention.register_forward_pre_hook(lambda m, args: seen.append(m.heads(args[0])[:2])) for b in model.blocks]
    model(ids)
    want = torch.stack([torch.stack([max((q[b, h, t] @ k[b, h, s]) / 8**0.5 for b in range(2) for t in range(9) for s in range(t + 1)) for h in range(2)]) for q, k in seen])
    for h in hooks: h.remove()
    assert torch.allclose(model.attention_logit_max(ids), want, atol=1e-4)
    noisy = ContextualGPT(GPTConfig(11, context=16, dropout=0.5, n_layers=1, n_heads=1, width=8))
    assert torch.equal(noisy.attention_logit_max(ids), noisy.attention_logit_max(ids)) and noisy.training
    before = torch.get_rng_state()
    noisy.attention_logit_max(ids)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_touches_linear_maps_only(model, monkeypatch):
    "Attention and norms see fp32 only; the weights and their gradients stay fp32; the maps see bfloat16"
    ids, seen, maps = random_ids(2, 10), [], []
    exact, attention, linear = model(ids), F.scaled_dot_product_attention, F.linear
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kw: seen.extend(x.dtype for x in args) or attention(*args, **kw))
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: maps.append((x.dtype, w.dtype)) or linear(x, w, b))
    for m in model.modules():
        if isinstance(m, torch.nn.LayerNorm): m.register_forward_hook(lambda m, args, out: seen.extend([args[0].dtype, out.dtype]))
    set_precision(model, "bf16")
    rough = model(ids)
    assert set(seen) == {torch.float32} and len(seen) == 3 * 3 + 2 * 7
    assert maps.count((torch.bfloat16, torch.bfloat16)) == len(maps) - 1 and maps[-1] == (torch.float32, torch.float32)  # the head
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.02 * exact.abs().max()
    rough.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    set_precision(model, "fp32")
    assert torch.equal(model(ids), exact)
    with pytest.raises(ValueError, match="none of fp32, bf16"): set_precision(model, "fp16")


def test_samples_can_be_trained_on_and_modes_come_back(model):
    model.train()
    ids = sample(model, random_ids(2, 3), 5, g=2).flatten(0, 1)
    model.log_probs(ids).sum().backward()
    assert model.training and model.head.weight.grad is not None
    with pytest.raises(ValueError, match="are not all among"): sample(model, random_ids(1, 3) + 100, 5)
    assert model.training


def test_ties_do_not_widen_top_k():
    draws = choose(torch.zeros(1000, 8), top_k=2, generator=torch.Generator().manual_seed(0))
    assert len(set(draws.tolist())) == 2


def test_arms_with_and_without_ngram_start_equal():
    models = []
    for n in (0, 4):
        torch.manual_seed(3)
        models.append(ContextualGPT(GPTConfig(11, context=8, n_layers=2, n_heads=1, width=8, ngram=n)).state_dict())
    assert all(torch.equal(v, models[1][k]) for k, v in models[0].items())


def test_dropout_only_while_training():
    model, ids = ContextualGPT(GPTConfig(11, context=8, n_layers=1, n_heads=1, width=8, dropout=0.5)), random_ids(1, 8)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("bad", [dict(n_heads=3), dict(dropout=1.0), dict(n_layers=0), dict(ngram=-1)])
def test_config_refuses(bad):
    with pytest.raises(ValueError): GPTConfig(5, **bad)
    with pytest.raises(ValueError, match="none of smoke, cpu, gpu"): GPTConfig.preset("huge", 5)


def test_parity_with_gpt2():
    "The same weights in the transformers library's GPT-2 give the same logits"
    transformers = pytest.importorskip("transformers", reason="the peer is compared where the `bench` extra is installed")
    torch.manual_seed(0)
    ours = ContextualGPT(GPTConfig(11, context=16, n_layers=2, n_heads=2, width=16)).eval()
    for p in ours.parameters(): torch.nn.init.normal_(p, std=0.3)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2, activation_function="gelu", tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)).eval()
    state = {k: torch.zeros_like(v) for k, v in peer.state_dict().items()}
    state |= {"transformer.wte.weight": ours.token.weight, "transformer.wpe.weight": ours.position.weight, "transformer.ln_f.weight": ours.norm.weight, "lm_head.weight": ours.head.weight}
    for i, b in enumerate(ours.blocks):
        a, at = b.attention, f"transformer.h.{i}."
        state |= {at + "ln_1.weight": b.norm1.weight, at + "ln_2.weight": b.norm2.weight, at + "attn.c_attn.weight": torch.cat([a.q.weight, a.k.weight, a.v.weight]).T,
                  at + "attn.c_proj.weight": a.out.weight.T, at + "mlp.c_fc.weight": b.up.weight.T, at + "mlp.c_proj.weight": b.down.weight.T}
    peer.load_state_dict(state)
    ids = random_ids(2, 16)
    assert torch.allclose(peer(ids).logits, ours(ids), atol=1e-5)
    assert n_parameters(ours) == 2 * (12 * 16**2 + 2 * 16) + 16 + 16 * 16 + 2 * 11 * 16


def test_choose_at_the_edges_of_temperature():
    logits = torch.tensor([[0.0, 1e5, 3.0]]).repeat(50, 1)
    assert (choose(logits, 1e-40) == 1).all()
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="must not be negative"): choose(logits, bad)


def test_ids_of_a_larger_vocabulary_are_refused_in_words():
    model = ContextualGPT(GPTConfig(8, context=8, n_layers=1, n_heads=2, width=16))
    with pytest.raises(ValueError, match="ids 3 … 19 are not all among the model's 8 symbols"): model(torch.tensor([[3, 19]]))


@pytest.mark.parametrize("prompt, message", [("to be", "not 'to be'"), (torch.arange(3), r"shape \(3,\)"), (torch.rand(1, 3), "float32")])
def test_prompts_that_are_no_ids_are_refused(model, prompt, message):
    with pytest.raises(ValueError, match=message): inspect.unwrap(sample)(model, prompt, 2)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(bad, temperature):
    with pytest.raises(ValueError, match="largest logit of a row is (nan|inf)"): choose(torch.tensor([[0.0, 1.0], [bad, 0.0]]), temperature)
    assert choose(torch.tensor([[-torch.inf, 1.0]]), temperature).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_cast_as_a_whole_computes_in_its_own_type(model, dtype):
    "And in double precision no step is taken in single"
    ids, single = random_ids(2, 9), copy.deepcopy(model)
    cast = model.to(dtype)
    cache = cast.new_cache(2)
    assert cast(ids).dtype == dtype and torch.cat([cast(part, cache) for part in ids.split([5, 4], 1)], 1).dtype == dtype
    if dtype == torch.float64:
        set_precision(cast, "fp32")
        exact = [cast(ids), cast(ids[:, :-1])]
        assert (exact[0][:, :-1] - exact[1]).abs().max() < 1e-12 and 1e-8 < (cast(ids) - single(ids)).abs().max() < 1e-3
