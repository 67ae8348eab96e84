"""Checkpoints: what they hold, what is refused before it is paid for, and what is refused when one is read"""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import fresh, go, weights

from refine_nb.checkpoints import (BadCheckpoint, _seal, _sha256, check_savable, checkpoints, load_checkpoint, load_weights, newest_checkpoint, read_manifest,
                                   save_checkpoint)
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.train import Averaged, adamw, cross_entropy, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Checkpoints of steps 7 and 8; copied before anything is done to them"
    folder = tmp_path_factory.mktemp("trained")
    run = fresh(steps=8)
    train(**run | dict(objective=Averaged(cross_entropy, run["model"], 0.9)), checkpoint_dir=folder)
    return folder


@pytest.fixture
def copied(trained, tmp_path): return shutil.copytree(trained, tmp_path / "copy")


def resumed(folder, **kwargs):
    "The same run again, from the folder's checkpoints"
    run = fresh(steps=8)
    run["objective"] = Averaged(cross_entropy, run["model"], 0.9)
    return run, train(**run, checkpoint_dir=folder, **kwargs)


def reseal(checkpoint, change):
    "Change a manifest, and seal it again"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["seal"]
    manifest["files"] |= {p.name: _sha256(p) for p in checkpoint.iterdir() if p.name != "manifest.json"}
    change(manifest)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | dict(seal=_seal(manifest))))


# Reading

@pytest.mark.parametrize("text", ["[]", "3", "null", '"step"', "{}", '{"seal": "x"}', ""])
def test_a_manifest_that_is_none(copied, text):
    newest = checkpoints(copied)[-1]
    (newest / "manifest.json").write_text(text)
    with pytest.raises(BadCheckpoint, match="manifest.json"): read_manifest(newest)


@pytest.mark.parametrize("field", ["step", "identity", "tensors", "files"])
@pytest.mark.parametrize("value", [None, "x"])
def test_a_sealed_manifest_that_lacks_a_field(copied, field, value):
    newest = checkpoints(copied)[-1]
    reseal(newest, lambda manifest: manifest.update({field: value}) if value else manifest.pop(field))
    with pytest.raises(BadCheckpoint, match=f"incomplete: no {field}"): read_manifest(newest)


@pytest.mark.parametrize("what", ["model", "optimizer", "groups", "parts", "settings"])
def test_a_sealed_identity_that_lacks_a_field(copied, what):
    for checkpoint in checkpoints(copied): reseal(checkpoint, lambda manifest: manifest["identity"].pop(what))
    with pytest.raises(BadCheckpoint, match=f"incomplete: no {what} in its identity"): resumed(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "rows.jsonl"])
def test_a_sealed_manifest_that_lacks_a_file(copied, name):
    newest = checkpoints(copied)[-1]
    (newest / name).unlink()
    reseal(newest, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(BadCheckpoint, match=f"{name} is missing"): read_manifest(newest)


@pytest.mark.parametrize("dropped, listed", [("optimizer/0/exp_avg", True), ("optimizer/", True), ("rng/cpu", False), ("objective/updates", False), ("costs/json", False)])
def test_sealed_tensors_that_are_missing(copied, dropped, listed):
    "Without the optimiser's state a run would go on with moments of zero; `listed`: the manifest still names them"
    newest = checkpoints(copied)[-1]
    kept = {name: value for name, value in load_file(newest / "training.safetensors").items() if not name.startswith(dropped)}
    save_file(kept, newest / "training.safetensors")
    reseal(newest, lambda manifest: None if listed else manifest.update(tensors=sorted(kept)))
    with pytest.raises(BadCheckpoint, match=f"incomplete: no {dropped}"): resumed(copied)


def test_rows_that_are_missing(copied):
    newest = checkpoints(copied)[-1]
    (newest / "rows.jsonl").write_text((newest / "rows.jsonl").read_text().split("\n", 1)[1])
    reseal(newest, lambda manifest: None)
    with pytest.raises(BadCheckpoint, match="7 rows of 8 steps"): resumed(copied)


def test_what_is_refused_leaves_everything_as_it_was(copied):
    "Weights of the same shape, another optimiser's settings"
    run = fresh(steps=8)
    before, optimizer = weights(run), adamw(run["model"], run["cfg"])
    with pytest.raises(BadCheckpoint, match="another run"): load_checkpoint(checkpoints(copied)[-1], run["model"], optimizer, {}, {})
    assert torch.equal(weights(run), before) and not optimizer.state


def test_the_newest_is_damaged_and_the_one_before_it_whole(copied, trained):
    "One bit: the run goes on from the older one, says so, and ends the same; both damaged are refused"
    whole, _ = resumed(trained)
    newest = checkpoints(copied)[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    with pytest.warns(UserWarning, match="step-00000008/model.safetensors is missing or damaged.*step-00000007"): again, rows = resumed(copied)
    assert torch.equal(weights(whole), weights(again)) and len(rows) == 8 and newest_checkpoint(copied) == newest
    for checkpoint in checkpoints(copied): (checkpoint / "rows.jsonl").unlink()
    with pytest.raises(BadCheckpoint, match="step-00000008.*No checkpoint in .* is whole.*resume=False"): resumed(copied)
    assert len(resumed(copied, resume=False)[1]) == 8 and newest_checkpoint(copied.parent) is None


# Writing

@pytest.mark.parametrize("state", [dict(n=3), dict(names=["a"]), dict(inner=dict(x=torch.zeros(1))), dict(nothing=None)])
def test_a_part_that_could_not_be_saved_is_refused_before_the_first_step(tmp_path, state):
    class Objective:
        calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            return cross_entropy(model, batch)

        def state_dict(self): return state
        def load_state_dict(self, state): pass

    run = fresh() | dict(objective=Objective())
    with pytest.raises(ValueError, match=f"objective/{next(iter(state))} is .*holds tensors"): train(**run, checkpoint_dir=tmp_path)
    assert run["objective"].calls == 0 and not list(tmp_path.iterdir())
    assert len(train(**run)) == 20


def test_an_optimiser_that_could_not_be_saved_is_refused_after_its_first_step(tmp_path):
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]: self.state[p]["step"] = self.state[p].get("step", 0) + 1
            return super().step(closure)

    run, rows = fresh(), []
    with pytest.raises(ValueError, match="optimizer/0/step is 1"): train(**run, checkpoint_dir=tmp_path, optimizer=Counting(run["model"].parameters(), 0.1), callbacks=(rows.append,))
    assert not rows and not list(tmp_path.iterdir())


def test_views_of_one_tensor_in_a_part(tmp_path):
    "Two names that share memory are two values in the file"
    class Part:
        def __init__(self): self.pair = torch.arange(4.0)
        def state_dict(self): return {"all": self.pair, "half": self.pair[2:], "across": self.pair.view(2, 2).T}
        def load_state_dict(self, state): self.loaded = state

    model, part = ContextualGPT(GPTConfig(5, context=8, n_layers=1, n_heads=2, width=16)), Part()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    check_savable(model, optimizer, dict(part=part))
    load_checkpoint(save_checkpoint(tmp_path, model, optimizer, dict(part=part), [], {}), model, optimizer, dict(part=part), {})
    assert part.loaded["half"].tolist() == [2, 3] and part.loaded["across"].tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize("compiled", [lambda model: torch.compile(model, backend="eager"), lambda model: model.blocks.__setitem__(0, torch.compile(model.blocks[0], backend="eager")) or model],
                         ids=["whole", "one block"])
@torch.compiler.set_stance("force_eager")  # the names change; checked types cannot be compiled
def test_a_compiled_model_and_the_plain_one_read_each_other(tmp_path, compiled):
    "The names in the file are the plain ones; stopped compiled and resumed plain, and the other way round"
    whole = fresh()
    rows = go(whole)
    for first, second in ((compiled, lambda model: model), (lambda model: model, compiled)):
        folder, broken, again = tmp_path / str(first is compiled), fresh(), fresh()

        def stopping(row):
            if row["step"] == 10: raise InterruptedError

        with pytest.raises(InterruptedError): train(**broken | dict(model=first(broken["model"])), checkpoint_dir=folder, callbacks=(stopping,))
        assert not any("_orig_mod" in name for name in load_file(checkpoints(folder)[-1] / "model.safetensors"))
        assert [r["flops"] for r in train(**again | dict(model=second(again["model"])), checkpoint_dir=folder)] == [r["flops"] for r in rows]
        assert torch.allclose(weights(whole), weights(again), atol=1e-6)
        plain = fresh()
        load_weights(plain["model"], checkpoints(folder)[-1])
        assert torch.equal(weights(plain), weights(again))


# Longer

def test_a_finished_run_is_made_longer(tmp_path):
    "Only when that is said, and only longer; its rates are those of the longer schedule from there on"
    first = train(**fresh(), checkpoint_dir=tmp_path)
    with pytest.raises(BadCheckpoint, match=r"settings: \{'steps': 20\} there, \{'steps': 30\} here.*extend=True to go on from 20 to 30"): train(**fresh(steps=30), checkpoint_dir=tmp_path)
    with pytest.raises(BadCheckpoint, match="'lr': 0.001") as other: train(**fresh(steps=30, lr=1e-3), checkpoint_dir=tmp_path, extend=True)
    with pytest.raises(BadCheckpoint, match="'steps': 20.*'steps': 10") as shorter: train(**fresh(steps=10), checkpoint_dir=tmp_path, extend=True)
    assert "extend" not in str(other.value) + str(shorter.value)
    long = fresh(steps=30)
    rows = train(**long, checkpoint_dir=tmp_path, extend=True)
    assert rows[:20] == first and [r["lr"] for r in rows[20:]] == [r["lr"] for r in train(**fresh(steps=30))[20:]]
    assert torch.equal(weights(long), weights(dict(model=resumed_long(tmp_path))))


def resumed_long(folder):
    "The extended run again: from its own checkpoint it needs no permission any more"
    run = fresh(steps=30)
    assert len(train(**run, checkpoint_dir=folder)) == 30
    return run["model"]
