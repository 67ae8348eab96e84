"""The Weights & Biases adapter: what it sends, and a real offline run where the package is installed"""
import sys
import types

import pytest

from refine_nb._wandb import WandbLog


@pytest.fixture
def fake(monkeypatch):
    "A module that remembers what it was told"
    told = []
    class Artifact:
        def __init__(self, name, type): self.said = (name, type)
        def add_dir(self, folder): self.said += ("folder", folder)
        def add_file(self, file): self.said += ("file", file)
    run = types.SimpleNamespace(log=lambda row, step: told.append(("log", step, row)), log_artifact=lambda a: told.append(("artifact", *a.said)), finish=lambda exit_code: told.append(("finish", exit_code)))
    module = types.ModuleType("wandb")
    module.init, module.Artifact = (lambda **kw: told.append(("init", kw)) or run), Artifact
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_rows_keep_their_names(fake, tmp_path):
    with WandbLog(config={"seed": 1}, folder=tmp_path) as log:
        log({"step": 3, "reward": 0.5, "rl/coherence": 0.7, "val_accuracy_greedy": 0.9, "words": "no number"})
        log.artifact(tmp_path, "thinker")
        (tmp_path / "model.safetensors").write_text("")
        log.artifact(tmp_path / "model.safetensors", "thinker")
        with pytest.raises(FileNotFoundError, match="save the model"): log.artifact(tmp_path / "none", "thinker")
    assert fake[0] == ("init", dict(project="refine_nb", config={"seed": 1}, dir=str(tmp_path), mode="offline"))
    assert fake[1] == ("log", 3, {"rl/reward": 0.5, "rl/coherence": 0.7, "val_accuracy_greedy": 0.9})
    assert fake[2:] == [("artifact", "thinker", "model", "folder", str(tmp_path)), ("artifact", "thinker", "model", "file", str(tmp_path / "model.safetensors")), ("finish", 0)]


def test_a_reinforced_model_is_logged_and_kept(fake, tmp_path):
    "All rows of a run, and its model as an artefact"
    import torch

    from refine_nb.benchmark_tasks import load_task
    from refine_nb.pipeline import run_step2_rl
    from refine_nb.thoughts import thoughts_for
    from refine_nb.train import TrainConfig
    from refine_nb.warm_start import thinker
    task = load_task("s5", 1)
    torch.manual_seed(0)
    model, thoughts = thinker(task, task.sample(50), n_layers=1, width=16), thoughts_for(task, task.sample(50))
    with WandbLog(folder=tmp_path) as log:
        result = run_step2_rl(tmp_path / "rl", model, ("s5", 1), thoughts, training=TrainConfig(steps=4, lr=1e-3, warmup=1), batch=5, items=20, callbacks=(log,), progress=False)
        log.artifact(tmp_path / "rl/model.safetensors", "thinker")
    rows = [row for what, *row in fake if what == "log"]
    assert [step for step, _ in rows] == [r["step"] for r in result.rows] == [1, 2, 3, 4]
    for (_, sent), row in zip(rows, result.rows): assert {k: v for k, v in sent.items() if k in row} == {k: v for k, v in row.items() if k.startswith(("rl/", "val_"))} and {"rl/reward", "rl/episode", "rl/zero_variance"} <= set(sent)
    assert fake[-2] == ("artifact", "thinker", "model", "file", str(tmp_path / "rl/model.safetensors"))


def test_a_failed_run_says_so(fake, tmp_path):
    with pytest.raises(KeyError), WandbLog(folder=tmp_path): raise KeyError("a mistake")
    assert fake[-1] == ("finish", 1)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"refine_nb\[wandb\]"): WandbLog()


def test_a_real_offline_run(tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    (tmp_path / "model.safetensors").write_text("{}")
    with WandbLog(folder=tmp_path) as log:
        log({"step": 1, "reward": 0.5})
        log.artifact(tmp_path / "model.safetensors", "thinker")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
