"""Every tool that reads or writes with a model, over every model class of the book, against plain rows: one row a text, no cache"""
import copy
import math
import pickle

import pytest
import torch

from refine_nb._attention import Ahead, Branches, Text
from refine_nb.candidates import CandidateConfig
from refine_nb.confidence import ConfidenceAwareGPT, Lookahead, _mask_ahead, branch_ahead, split_window
from refine_nb.gpt import Attention, ContextualGPT, GPTConfig, choose, read_prompts, sample
from refine_nb.grpo import GRPOConfig, Rollouts
from refine_nb.mugrokfast import LogitWatch
from refine_nb.prefix import Prefix, branch_logits, generate, tree_logits
from refine_nb.quiet_star import QuietConfig, QuietGPT, think
from refine_nb.thoughts import ThoughtConfig, ThoughtGenerator, thought_logp
from refine_nb.trm import NormedGPT, RecursiveGPT, TRMConfig

V, CONTEXT = 11, 20
SHAPE = dict(context=CONTEXT, n_heads=2, width=16)
THOUGHTS = ThoughtConfig(9, 10, n_thoughts=2, length=3, ahead=2)
MODELS = {
    "plain": lambda: ContextualGPT(GPTConfig(V, n_layers=2, **SHAPE)),
    "ngram": lambda: ContextualGPT(GPTConfig(V, n_layers=2, ngram=3, **SHAPE)),
    "normed": lambda: NormedGPT(GPTConfig(V, n_layers=2, ngram=3, **SHAPE)),
    "recursive": lambda: RecursiveGPT(TRMConfig(V, n_layers=1, ngram=1, **SHAPE)),
    "recursive two layers": lambda: RecursiveGPT(TRMConfig(V, n_layers=2, **SHAPE)),
    "confidence": lambda: ConfidenceAwareGPT(GPTConfig(V, n_layers=2, ngram=3, **SHAPE)),
    "feedback": lambda: ConfidenceAwareGPT(GPTConfig(V, n_layers=2, ngram=2, **SHAPE), feedback=CONTEXT),
    "quiet": lambda: QuietGPT(QuietConfig(V, n_layers=2, ngram=3, thoughts=THOUGHTS, **SHAPE)),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    "One of the book's models, far from the symmetric start"
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    return model


def ids(*shape, seed=1): return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=4): return torch.Generator().manual_seed(seed)


def close(ours, rows): assert (ours - rows).abs().max() < 1e-5


def behind(model, prefix, branches):
    "Plain rows: logits from which each character of each branch was drawn"
    whole = torch.cat([prefix.repeat_interleave(branches.shape[1], 0), branches.flatten(0, 1)], 1)
    return model(whole[:, :-1])[:, prefix.shape[1] - 1 :].unflatten(0, branches.shape[:2])


def same_gradients(model, ours, rows):
    pick = torch.randn(rows.shape, generator=rng())
    a, b = (torch.autograd.grad((x.log_softmax(-1) * pick).sum(), list(model.parameters()), allow_unused=True) for x in (ours, rows))
    largest = max(y.abs().max() for y in b if y is not None)
    assert [x is None for x in a] == [y is None for y in b]
    assert max((x - y).abs().max() for x, y in zip(a, b) if y is not None) < 2e-5 * largest


def written(model, prompt, n, g, temperature, first=None):
    "Plain rows: every row read again for each character"
    rows, draws = prompt.repeat_interleave(g, 0), rng()
    for i in range(n):
        new = first.flatten() if first is not None and i == 0 else choose(model(rows)[:, -1], temperature, None, draws)
        rows = torch.cat([rows, new[:, None]], 1)
    return rows.unflatten(0, (-1, g))


@pytest.mark.parametrize("g, temperature", [(1, 1.0), (3, 0), (3, 1.0)])
def test_sample(model, g, temperature):
    ours = sample(model, ids(2, 5), 6, g, temperature, generator=rng())
    assert torch.equal(ours, written(model, ids(2, 5), 6, g, temperature))


@pytest.mark.parametrize("g, forced", [(1, False), (3, True), (3, False)])
def test_generate(model, g, forced):
    first = ids(2, g, seed=5) if forced else None
    ours = generate(Prefix(model, ids(2, 5)), 6, g, first, generator=rng())
    assert torch.equal(ours, written(model, ids(2, 5), 6, g, 1.0, first)[:, :, 5:])


def test_rows(model):
    "In pieces, forked twice, rolled back, picked"
    text, cache = ids(6, 14), model.new_cache(1, room=2)
    text[:, :4], text[:3, 4:6], text[3:, 4:6] = text[:1, :4], text[:1, 4:6], text[3:4, 4:6]
    close(model(text[:1, :4], cache), model(text[:1, :4]))
    close(model(text[::3, 4:6], cache.fork(2)), model(text[::3, :6])[:, 4:])
    cache.fork(3)
    close(torch.cat([model(part, cache) for part in text[:, 6:10].split([1, 3], 1)], 1), model(text[:, :10])[:, 6:])
    picked = torch.tensor([5, 0, 0])
    cache.rollback(8).gather(picked)
    close(model(text[picked, 8:], cache), model(text[picked])[:, 8:])


def test_prefix_and_branches(model):
    prefix, branches = ids(2, 6), ids(2, 3, 5, seed=3)
    close(Prefix(model, prefix).next_logits, model(prefix)[:, -1])
    ours, rows = branch_logits(Prefix(model, prefix), branches), behind(model, prefix, branches)
    close(ours, rows)
    same_gradients(model, ours, rows)


def test_trees(model):
    parent, packed = torch.tensor([-1, 0, 1, 1, 2, 2, 3, 0, 7, -1, 9]), ids(2, 11)
    ours = tree_logits(model, packed, parent)
    for i in range(len(parent)):
        path = [i]
        while parent[path[0]] >= 0: path.insert(0, int(parent[path[0]]))
        close(ours[:, i], model(packed[:, path])[:, -1])


AT = torch.tensor([[0, 3, 3, 7], [5, 5, 2, 6]])


def on_diagonals(model, text, branches):
    "Plain rows: the last layer after each character of branches that leave the text behind the positions of `AT`"
    rows = [[model.hidden(torch.cat([text[i, : p + 1], branches[i, j]])[None])[0, p + 1 :] for j, p in enumerate(AT[i].tolist())] for i in range(2)]
    return torch.stack([torch.stack(row) for row in rows])


def test_diagonal_thoughts(model):
    text, branches = ids(2, 8), ids(2, 4, 6, seed=2)
    rows = on_diagonals(model, text, branches)
    at_once, growing = Prefix(model, text, every=True).branches(at=AT), Prefix(model, text).branches(at=AT)
    at_once = model.hidden(branches.flatten(1), at_once).unflatten(1, (4, -1))
    close(at_once, rows)
    close(torch.cat([model.hidden(part.flatten(1), growing).unflatten(1, (4, -1)) for part in branches.split([2, 1, 3], 2)], 2), rows)
    same_gradients(model, model.head(at_once), model.head(rows))


def test_thinking(model):
    "Greedy thoughts at all places, written at once"
    text, ours = ids(2, 8), []
    for i in range(2):
        for p in AT[i].tolist():
            row = [*text[i, : p + 1].tolist(), THOUGHTS.start]
            for _ in range(THOUGHTS.length): row.append(int(thought_logp(model(torch.tensor([row]))[0, -1], THOUGHTS).argmax()))
            ours.append(row[-THOUGHTS.length :])
    assert think(Prefix(model, text), AT, ThoughtConfig(9, 10, length=3, temperature=0.0)).flatten(0, 1).tolist() == ours


def test_look_ahead(model):
    "Both forms, with the confidences that the objective hands over; a model without confidences is refused by name"
    text, branch = ids(3, 8), ids(3, 8, seed=2)
    if not isinstance(model, ConfidenceAwareGPT):
        with pytest.raises(TypeError, match=type(model).__name__): Lookahead()(model, split_window(ids(3, 10)))
        return
    heard, read = model.previous(text), Text()
    pred = model.confidence_predictor(model.hidden(text, read, confidence_scalars=heard))[..., 0]
    heard = torch.zeros(3, 8, 1) if heard is None else heard
    rows = torch.stack([model(torch.cat([text[:, : t + 1], branch[:, t : t + 1]], 1), confidence_scalars=torch.cat([heard[:, : t + 1], pred[:, t : t + 1, None]], 1))["logits"][:, -1] for t in range(8)], 1)
    close(_mask_ahead(model, text, branch, pred, heard), rows)
    close(branch_ahead(model, read, branch, pred), rows)


def test_one_character_ahead(model):
    "A character behind every position, without a confidence from outside; again and again from one reading"
    text, prefix = ids(3, 8), Prefix(model, ids(3, 8))
    for seed in (2, 3):
        branch = ids(3, 8, seed=seed)
        with torch.no_grad(): ours = model(branch, prefix.ahead())
        close(ours, torch.stack([model(torch.cat([text[:, : t + 1], branch[:, t : t + 1]], 1))[:, -1] for t in range(8)], 1))
    with pytest.raises(ValueError, match="no gradients"): model(branch, Ahead(prefix.text))


def largest_by_hand(model, text):
    "The largest causal logit of every attention module, from the queries and keys of all its calls with gradients"
    seen = {}

    def spy(attention):
        def heads(x):
            q, k, v = type(attention).heads(attention, x)
            logits = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), -torch.inf)
            if torch.is_grad_enabled(): seen.setdefault(attention, []).append(logits.detach().amax((0, 2, 3)))
            return q, k, v
        return heads

    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    try:
        for m in attentions: m.heads = spy(m)
        model(text)
    finally:
        for m in attentions: m.__dict__.pop("heads", None)
    return torch.stack([torch.stack(seen[m]).amax(0) for m in attentions])


def test_attention_watch(model):
    text = ids(3, 9)
    want, watch = largest_by_hand(model, text), LogitWatch(model)
    model(text).sum().backward()
    torch.testing.assert_close(torch.stack(watch.largest).detach(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.attention_logit_max(text), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(watch.largest), want, rtol=1e-5, atol=1e-5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(m.observer is None for m in other.modules() if isinstance(m, Attention))
        close(other(text), model(text))


def test_grpo_rollouts(model):
    "The policy that learns is the one that drew"
    rollouts, batch = Rollouts(GRPOConfig(), CandidateConfig("on_policy", n_samples=3), V, 4, seed=2), ids(3, 10)
    read = rollouts.read(model, batch)
    tries, _ = rollouts.explore(read, batch)
    logp, chosen = rollouts.log_probs(read, tries)
    rows = behind(model, batch[:, :-4], tries.ids).log_softmax(-1)
    close(logp, rows)
    close(chosen, rows.gather(-1, tries.ids[..., None])[..., 0])


def test_thoughts_after_prompts(model):
    "What the reinforcement of thoughts draws: every character that the model chose is the likeliest of a plain row"
    prefix, write = ids(3, 5), ThoughtGenerator(THOUGHTS, answer=4, stop=0)
    for g in (1, 2):
        found = write(Prefix(model, prefix), g, temperature=0.0)
        likeliest = behind(model, torch.cat([prefix, torch.full((3, 1), THOUGHTS.start)], 1), found.ids[..., 1:]).argmax(-1)
        assert torch.equal(likeliest[found.chosen[..., 1:]], found.ids[..., 1:][found.chosen[..., 1:]]) and found.chosen.any(-1).all()
    drawn = write(Prefix(model, prefix), generator=rng())
    close(branch_logits(Prefix(model, prefix), drawn.ids), behind(model, prefix, drawn.ids))


# What a cache and a model refuse

def test_a_pass_that_is_computed_again_refuses_a_cache_by_name():
    model = RecursiveGPT(TRMConfig.preset("smoke", V, gradient_checkpointing=True))
    with pytest.raises(ValueError, match="RecursiveGPT with gradient_checkpointing reads no Text"): Prefix(model, ids(2, 5))
    with pytest.raises(ValueError, match="reads no Rows with gradients"): model(ids(2, 5), model.new_cache(2))
    with torch.no_grad(): close(Prefix(model, ids(2, 5)).next_logits, model(ids(2, 5))[:, -1])
    assert sample(model, ids(2, 5), 3).shape == (2, 1, 8)


class Deaf(ContextualGPT):
    "Reads plain rows whatever it is handed"

    def hidden(self, ids, cache=None, last=False): return super().hidden(ids)


def test_a_model_that_does_not_ask_its_cache_is_refused_by_name():
    model = Deaf(GPTConfig(V, n_layers=1, **SHAPE))
    with pytest.raises(TypeError, match="Deaf does not read through Text"): Prefix(model, ids(2, 5))
    with pytest.raises(TypeError, match="Deaf does not read through Tree"): tree_logits(model, ids(2, 3), torch.tensor([-1, 0, 0]))
    with pytest.raises(TypeError, match="Deaf does not read through Rows"): sample(model, ids(2, 5), 3)


def test_what_does_not_fit_is_refused():
    model = ContextualGPT(GPTConfig(V, n_layers=1, **SHAPE))
    prefix, text = Prefix(model, ids(2, 5)), Text()
    model(ids(2, 5), text)
    for act, message in [
        (lambda: model(ids(2, 1), text), "is read once"), (lambda: model(ids(2, 4), prefix.branches(3)), "not 3 branches of 2 texts"),
        (lambda: model(ids(3, 6), prefix.branches(3)), "not 3 branches of 2 texts"), (lambda: prefix.branches(at=torch.tensor([[5], [0]])), "positions 0 to 4"),
        (lambda: model(ids(2, 32), prefix.branches(2)), "16 characters after position 4 does not fit"), (lambda: prefix.hidden, "every=True"),
        (lambda: model.new_cache(2, 3).part(0, 1).begin(ids(1, 4)), "part of a cache does not grow"),
    ]:
        with pytest.raises(ValueError, match=message): act()
    with torch.no_grad(), pytest.raises(ValueError, match="2 ids behind every position"): model(ids(2, 10), prefix.ahead())


def test_what_a_parent_did_not_keep_cannot_be_heard():
    "A text that was read with confidences from outside leaves none for a model that goes on with its own"
    model, text = ConfidenceAwareGPT(GPTConfig(V, n_layers=1, **SHAPE), feedback=2), Text()
    rows = model.new_cache(2)
    for cache in (text, rows): model.hidden(ids(2, 5), cache, confidence_scalars=torch.zeros(2, 5, 1))
    with pytest.raises(ValueError, match="without keeping 'confidence'"): model(ids(2, 4), Branches(text, 2))
    with pytest.raises(ValueError, match="without keeping 'confidence'"): model(ids(2, 1), rows)


def test_prompts_read_in_parts_keep_what_is_heard():
    "More prompts than are read at a time, with a confidence that is fed back"
    torch.manual_seed(0)
    model = ConfidenceAwareGPT(GPTConfig(V, n_layers=1, ngram=2, **SHAPE), feedback=CONTEXT).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=0.3)
    cache = model.new_cache(5, 8)
    close(read_prompts(model, ids(5, 6), cache, tokens=12), model(ids(5, 6))[:, -1])
    close(model(ids(5, 2, seed=2), cache), model(torch.cat([ids(5, 6), ids(5, 2, seed=2)], 1))[:, -2:])
