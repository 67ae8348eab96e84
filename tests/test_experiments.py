"""What experiments define for themselves: the cells of 16_thought_rl and 16_longer_problems up to their training, on small models"""
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

import refine_nb.records
from refine_nb.data import load_corpus
from refine_nb.tasks import ProblemBatches, split_of
from refine_nb.puzzles import S5

ROOT = Path(__file__).resolve().parent.parent


def cells(name, folder, monkeypatch, until, **params):
    "The variables of an experiment after its cells up to the one that holds `until`, in its smoke preset with other parameters, without a record"
    def start_run(experiment, live, presets, corpus=None):
        (folder / "run.json").touch()
        return SimpleNamespace(params=presets["smoke"] | {k: v for k, v in live.items() if k in known and v is not None}, dir=folder, checkpoint_dir=folder)
    monkeypatch.setattr(refine_nb.records, "start_run", start_run)
    ns = {"display": print}
    with chdir(folder):
        for cell in nbformat.read(ROOT / f"experiments/{name}.ipynb", 4).cells:
            if cell.cell_type != "code": continue
            exec(compile(cell.source, name, "exec"), ns)
            if "parameters" in cell.metadata.get("tags", ()):
                known = {k for k in ns if k not in ("PRESETS", "display", "__builtins__", "__annotations__")}
                assert set(params) <= known
                ns |= {"preset": "smoke"} | params
            if until in cell.source: return ns
    raise AssertionError(f"no cell of {name} has {until!r}")


def thought_rl(tmp_path, monkeypatch, **params):
    return cells("16_thought_rl", tmp_path, monkeypatch, "def batches_of", **dict(length=1, width=32, warm_steps=80, batch=4) | params)


@pytest.mark.parametrize("method, canned", [("supervised", 7), ("worked", 0)])
def test_further_examples_are_as_many_as_thoughts_with_the_phrase_or_without(tmp_path, monkeypatch, method, canned):
    "Four thoughts for each of four questions, of the canned start's mixture"
    source = thought_rl(tmp_path, monkeypatch, method=method, warm="canned", warm_steps=0)["source"]
    assert source.counts == (3, 13 - canned, canned) and sum(len(prompt) for prompt, _ in next(source)) == 4 * 4


@pytest.mark.parametrize("method, learner", [("reinforce", "ThoughtRL"), ("naive", "PublishedObjective"), ("expert", "warm_loss")])
def test_methods_share_their_questions_and_draw_as_many_thoughts(tmp_path, monkeypatch, method, learner):
    ns = thought_rl(tmp_path, monkeypatch, method=method, warm_steps=0, n_thoughts=2)
    objective = ns["objective_of"](method, 3)
    assert getattr(objective, "__name__", type(objective).__name__) == learner and ns["examples"] == 4 * 2
    asked = ns["source"].questions if method == "expert" else ns["source"]
    assert torch.equal(next(asked)[0], next(ProblemBatches(ns["problems"], 4, 0, ns["keep"], width=ns["room"]))[0])
    if method == "naive": assert objective.rewarded and not ns["objective_of"]("cross_entropy", 3).rewarded


@pytest.mark.parametrize("stage", ["tune", "report"])
def test_judged_problems_are_never_learned_from(tmp_path, monkeypatch, stage):
    ns = thought_rl(tmp_path, monkeypatch, stage=stage, warm_steps=0, length=3)
    task, judged = ns["problems"], {i.prompt for i in ns["judged"]}
    assert len(judged) == 10 and all((split_of(p) == "test") == (stage == "report") for p in judged)
    kept, every = ProblemBatches(task, 500, 0, ns["keep"]), ProblemBatches(task, 500, 0)
    shown = lambda source: {i.prompt for _ in range(20) for i in next(source)[2]}
    assert not judged & shown(kept) and bool(judged & shown(every)) == (stage == "tune")  # nothing else keeps them out while tuning


def longer(tmp_path, monkeypatch, until, **params):
    return cells("16_longer_problems", tmp_path, monkeypatch, until, **dict(steps=4) | params)


def test_a_step_that_carries_the_rest_is_a_problem_of_its_own(tmp_path, monkeypatch):
    carrying = longer(tmp_path, monkeypatch, "class Carrying")["kind"](4)
    for item in carrying.sample(20):
        assert len(item.steps) == 4 and item.steps[-1] == item.answer and carrying.check_steps(item, item.completion(worked=True))
        for k, step in enumerate(item.steps[:-1]):
            assert len(step) == 5 + 3 - k and S5(3 - k).item(step + "=").answer == item.answer == S5(4).item(item.prompt).answer


@pytest.mark.parametrize("rewarded, spans", [("worked", [(1, 2)] * 4), ("hardest", [(1, 2)] * 2 + [(2, 2)] * 2), ("longer", [(1, 2)] * 2 + [(3, 3)] * 2)])
def test_rungs_grow_longer_half_way_and_go_on_from_a_checkpoint(tmp_path, monkeypatch, rewarded, spans):
    ns = longer(tmp_path, monkeypatch, "class Rungs", rewarded=rewarded, longest=2, positions="fixed", batch=20, method="none")
    rungs = ns["Rungs"]()
    batches = [next(rungs) for _ in range(2)]
    again = ns["Rungs"]()
    again.load_state_dict(rungs.state_dict())
    batches += [next(rungs) for _ in range(2)]
    for (low, high), (_, _, items) in zip(spans, batches): assert {len(i.prompt) - 6 for i in items} == set(range(low, high + 1))
    for batch in batches[2:]: assert torch.equal(next(again)[0], batch[0])


def test_no_positions_are_none(tmp_path, monkeypatch):
    model = longer(tmp_path, monkeypatch, "baked =", positions="none", method="none")["model"]
    assert not model.position.weight.any() and not model.position.weight.requires_grad


def test_every_judged_place_is_trained_where_places_are_shifted(tmp_path, monkeypatch):
    "Judged texts in the middle of their room; rewarded ones end where the taught ones do"
    ns = longer(tmp_path, monkeypatch, "class Rungs", positions="shifted", method="none", rewarded="longer", batch=40)
    last = max(p.shape[1] + max(w.shape[1] for _, w in batch) for batch in (next(ns["WarmStart"](ns["worked"], 64, 0.1, 0.0, s, None, ns["shifts"]["taught"])) for s in range(60)) for p, _ in batch)
    for k, items in ns["placed"].items():
        first, end = ns["shifts"][k] // 2, max(len(i.text(worked=True)) for i in items)
        assert all(i.prompt.startswith("\n" * first) and not i.prompt.startswith("\n" * (first + 1)) for i in items) and 4 <= first and end + 4 <= last + 1, (k, first, end, last)
        assert [i.steps for i in items] == [i.steps for i in ns["judged"][k]]
    rungs = ns["Rungs"]()
    assert [q.shift + ns["widths"][k] for q, k in zip(rungs.questions, ("taught", "plus1"))] == [ns["widths"]["plus2"] + ns["spare"]] * 2
    assert ns["model"].cfg.context >= last


def test_longer_problems_are_judged_step_by_step(tmp_path, monkeypatch):
    "A validation that writes the worked thought of every other problem"
    ns = longer(tmp_path, monkeypatch, "baked =", method="none")
    def validate(model, baked, task, thoughts, items, seed):
        assert thoughts.length == max(len(",".join(i.steps)) for i in ns["judged"]["plus2"])
        texts = [",".join(i.steps) + ":" + i.answer if n % 2 else ",".join(i.steps) + "," for n, i in enumerate(items)]
        return dict(accuracy_direct=0.1, accuracy_greedy=0.2, accuracy_sampled=0.3, truncated=0.4), SimpleNamespace(thoughtful=texts)
    ns["validate_episode"] = validate
    told = ns["judge"](ns["model"])
    assert told == {f"{name}_{k}": value for k in ("taught", "plus1", "plus2") for name, value in dict(direct=0.1, greedy=0.2, sampled=0.3, cut=0.4, steps=0.5).items()}


@pytest.mark.parametrize("n, judged", [(10_000, 62), (16_010, 100), (60_000, 374)])
def test_counts_judge_a_short_text_in_windows_of_the_preset(tmp_path, monkeypatch, n, judged):
    (tmp_path / "mine.txt").write_text(load_corpus("markov").text[:n])
    mine = dict(corpus=str(tmp_path / "mine.txt"), method="counts", order=2)
    ns = cells("01_char_lm", tmp_path, monkeypatch, "text_accuracy", **mine)
    assert {name: len(values) for name, values in ns["per_window"].items()} == {"val_loss": judged, "text_accuracy": judged}


def test_a_text_without_a_window_is_refused_before_a_run_starts(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("a text of one line")
    with pytest.raises(ValueError, match="take a longer text"):
        cells("01_char_lm", tmp_path, monkeypatch, "eval_windows(", corpus=str(tmp_path / "mine.txt"))
    assert not (tmp_path / "run.json").exists()
