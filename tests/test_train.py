"""The loop: an independent loop, bit-identical resumption after a real kill, golden losses, refusals"""
import copy
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import refine_nb.checkpoints as checkpoints_module
import refine_nb.train as train_module
from refine_nb.checkpoints import BadCheckpoint, list_checkpoints
from refine_nb.data import MarkovSource, Windows
from refine_nb.gpt import ContextualGPT, GPTConfig
from refine_nb.train import _bar, WeightEMA, NonFiniteLoss, Objective, TrainConfig, adamw, count_flops, cross_entropy, lr_at, train, update

IDS = torch.from_numpy(MarkovSource().sample(5000))


def fresh(seed=0, dropout=0.0, **cfg):
    torch.manual_seed(seed)
    model = ContextualGPT(GPTConfig(16, context=12, n_layers=2, n_heads=2, width=16, dropout=dropout))
    return dict(model=model, objective=cross_entropy, batches=Windows(IDS, 12, 4, seed=seed), cfg=TrainConfig(**dict(steps=20, warmup=5, checkpoint_every=7) | cfg), progress=False)


def go(run, seed=1, **kwargs):
    torch.manual_seed(seed)  # dropout's draws
    return train(**run, **kwargs)


def weights(run): return torch.cat([p.detach().flatten() for p in run["model"].parameters()])


def test_against_a_loop_written_out():
    "The same steps with torch's AdamW, unfused, and the schedule as a formula"
    run, twin = fresh(clip=0.5), fresh(clip=0.5)
    rows = train(**run)
    decay = [p for p in twin["model"].parameters() if p.ndim > 1]
    gain = [p for p in twin["model"].parameters() if p.ndim == 1]
    opt = torch.optim.AdamW([dict(params=decay, weight_decay=0.1), dict(params=gain, weight_decay=0.0)], betas=(0.9, 0.95), foreach=False)
    for step, row in enumerate(rows):
        lr = 3e-3 * min(1, (step + 1) / 5) if step < 5 else 3e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15)))
        batch = next(twin["batches"])
        loss = F.cross_entropy(twin["model"](batch[:, :-1]).transpose(1, 2), batch[:, 1:])
        opt.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in twin["model"].parameters()))
        for p in twin["model"].parameters(): p.grad *= min(1, 0.5 / (norm.item() + 1e-6))
        for group in opt.param_groups: group["lr"] = lr
        opt.step()
        assert row["loss"] == pytest.approx(loss.item(), abs=1e-5) and row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4) and row["lr"] == pytest.approx(lr)
    assert torch.allclose(weights(run), weights(twin), atol=1e-5)
    assert [r["tokens"] for r in rows] == [48 * (i + 1) for i in range(20)]


def test_golden_losses():
    "Twenty steps from a fixed start; a change here is a change of what every recorded run means"
    losses = [r["loss"] for r in train(**fresh())]
    assert losses[::5] == pytest.approx(GOLDEN, abs=2e-4)


GOLDEN = [2.78328, 2.75874, 2.79199, 2.72723]


def test_two_runs_are_equal_to_the_bit():
    a, b = fresh(dropout=0.2), fresh(dropout=0.2)
    go(a), go(b)
    assert not torch.equal(weights(a), weights(fresh(dropout=0.2)))
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [1, 7, 8, 20])
def test_stopped_anywhere_and_resumed(tmp_path, stop, precision):
    whole, broken, resumed = (fresh(dropout=0.2, precision=precision, accumulate=2, eval_every=4) for _ in range(3))
    resumed["model"].load_state_dict({k: torch.zeros_like(v) for k, v in resumed["model"].state_dict().items()})
    rows = go(whole, evaluate=lambda m: dict(val_x=float(m.head.weight.detach().sum())))

    def stopping(row):
        if row["step"] == stop: raise RuntimeError("stop")

    with pytest.raises(RuntimeError): go(broken, checkpoint_dir=tmp_path, callbacks=(stopping,))
    seed = 99
    if not list_checkpoints(tmp_path): resumed, seed = fresh(dropout=0.2, precision=precision, accumulate=2, eval_every=4), 1
    again = go(resumed, seed, evaluate=lambda m: dict(val_x=float(m.head.weight.detach().sum())), checkpoint_dir=tmp_path)
    assert torch.equal(weights(whole), weights(resumed))
    timeless = [{k: v for k, v in r.items() if k not in ("cpu_seconds", "val_x")} for r in rows]
    assert timeless == [{k: v for k, v in r.items() if k not in ("cpu_seconds", "val_x")} for r in again] and rows[-1]["val_x"] == again[-1]["val_x"]


def test_resume_tells_the_recorder(tmp_path):
    class Recorder(list):
        def __call__(self, row): self.append(row["step"])
        def on_resume(self, step): del self[step:]

    log = Recorder()

    def failing(row):
        if row["step"] == 18: raise RuntimeError

    with pytest.raises(RuntimeError): train(**fresh(), checkpoint_dir=tmp_path, callbacks=(log, failing))
    assert log == list(range(1, 19))
    train(**fresh(), checkpoint_dir=tmp_path, callbacks=(log,))
    assert log == list(range(1, 21))


SCRIPT = """
    import sys, torch
    sys.path.insert(0, {tests!r})
    torch.set_num_threads(1)
    from test_train import fresh, train, weights
    settings = dict(dropout=0.2, steps=150, checkpoint_every=3)
    killed = fresh(**settings)
    def say(row): print(row["step"], flush=True)
    train(**killed, checkpoint_dir=sys.argv[1], callbacks=(say,))
    whole = fresh(**settings)
    train(**whole)
    print("equal to the bit" if torch.equal(weights(killed), weights(whole)) else "other weights", flush=True)
"""


def start(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=os.path.dirname(__file__)))
    return subprocess.Popen([sys.executable, script, tmp_path / "killed"], stdout=subprocess.PIPE, text=True)


def test_killed_twice_and_resumed(tmp_path):
    "kill -9 at some moment, twice, with a checkpoint every three steps: a third process ends with the weights of an unbroken run"
    for wait in (0.003, 0.006):
        job = start(tmp_path)
        for _ in range(20): job.stdout.readline()
        time.sleep(wait)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL and list_checkpoints(tmp_path / "killed")
    job = start(tmp_path)
    first, *_, last = job.communicate()[0].splitlines()
    assert job.returncode == 0 and int(first) > 36 and last == "equal to the bit"


def test_an_interrupt_loses_nothing(tmp_path):
    def interrupting(row):
        if row["step"] == 11: os.kill(os.getpid(), signal.SIGINT)

    whole, broken, resumed = fresh(), fresh(), fresh()
    train(**whole)
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 11"): train(**broken, checkpoint_dir=tmp_path, callbacks=(interrupting,))
    assert signal.getsignal(signal.SIGINT) is usual and list_checkpoints(tmp_path)[-1].name == "step-00000011"
    train(**resumed, checkpoint_dir=tmp_path)
    assert torch.equal(weights(whole), weights(resumed))


def test_non_finite_stops_before_the_update(tmp_path):
    run = fresh()

    def objective(model, batch):
        loss, metrics = cross_entropy(model, batch)
        return (loss * math.nan if run["batches"].broken else loss), metrics

    class Breaking(Windows):
        broken, drawn = False, 0

        def __next__(self):
            self.drawn += 1
            self.broken = self.drawn == 10
            if self.broken: self.before = weights(run)
            return super().__next__()

    run |= dict(batches=Breaking(IDS, 12, 4), objective=objective)
    with pytest.raises(NonFiniteLoss, match="loss nan, gradient norm nan at step 10; last good checkpoint: .*step-00000007") as error: train(**run, checkpoint_dir=tmp_path)
    assert error.value.step == 10 and torch.equal(weights(run), run["batches"].before)


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "rows.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", *range(0, 100, 7)])
def test_damaged_checkpoints_are_refused_by_name(tmp_path, file, damage):
    "Cut in half, gone, or one bit flipped at some percentage of the file"
    train(**fresh(steps=3), checkpoint_dir=tmp_path)
    path = list_checkpoints(tmp_path)[-1] / file
    data = bytearray(path.read_bytes())
    if damage == "missing": path.unlink()
    elif damage == "truncated": path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) * damage // 100] ^= 1
        path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=file): train(**fresh(steps=3), checkpoint_dir=tmp_path)


def test_foreign_checkpoints_are_refused(tmp_path):
    train(**fresh(), checkpoint_dir=tmp_path)
    shape = GPTConfig(16, context=12, n_layers=2, n_heads=2, width=16)
    others = {"another run: model: .*n_heads': '1'": dict(model=ContextualGPT(replace(shape, n_heads=1))), "another run: model: .*dropout": dict(model=ContextualGPT(replace(shape, dropout=0.1))),
              "another model: blocks.0": dict(model=ContextualGPT(replace(shape, width=32))), "another text": dict(batches=Windows(IDS.flip(0), 12, 4)),
              "context or size": dict(batches=Windows(IDS, 12, 5)), "another run: parts": dict(batches=iter([]))}
    for message, other in others.items():
        with pytest.raises(BadCheckpoint, match=message): train(**fresh() | other, checkpoint_dir=tmp_path)
    with pytest.raises(BadCheckpoint, match="settings.*'lr': 0.003.*'lr': 0.001"): train(**fresh(lr=1e-3), checkpoint_dir=tmp_path)
    run = fresh()
    with pytest.raises(BadCheckpoint, match="optimizer: AdamW there, SGD here"): train(**run, checkpoint_dir=tmp_path, optimizer=torch.optim.SGD(run["model"].parameters(), 0.1))
    assert len(train(**fresh(checkpoint_every=3), checkpoint_dir=tmp_path)) == 20  # how often it is saved is free to change


@pytest.mark.parametrize("broken, call", [("save_file", 0), ("save_file", 1), ("_sha256", 1), ("fsync_path", 0), ("fsync_path", 3), ("rename", 0)])
def test_a_failure_while_writing_a_checkpoint_leaves_the_old_one(tmp_path, monkeypatch, broken, call):
    "Each thing that writing does fails in turn; the next process finds the checkpoint before, and the same weights in the end"
    whole, calls = fresh(dropout=0.2), []
    go(whole)
    target = (pathlib.Path, "rename") if broken == "rename" else (checkpoints_module, broken)
    real = getattr(*target)

    def fail(*args, **kwargs):
        if len(list(tmp_path.glob("step-*"))) == 1: calls.append(1)  # the second checkpoint is being written
        if len(calls) > call: raise OSError("disk full")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(OSError): go(fresh(dropout=0.2), checkpoint_dir=tmp_path)
    assert [p.name for p in list_checkpoints(tmp_path)] in (["step-00000007"], ["step-00000007", "step-00000014"])
    resumed = fresh(dropout=0.2)
    assert len(go(resumed, 99, checkpoint_dir=tmp_path)) == 20
    assert torch.equal(weights(whole), weights(resumed)) and not list(tmp_path.glob(".*"))


def test_resumed_with_the_same_objects(tmp_path):
    "An exception between two accumulated batches leaves gradients behind; the resumed run must not add to them"
    whole, run, calls = fresh(accumulate=2), fresh(accumulate=2), []
    train(**whole)

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 21: raise RuntimeError
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError): train(**run | dict(objective=failing), checkpoint_dir=tmp_path)
    assert any(p.grad is not None for p in run["model"].parameters())
    train(**run, checkpoint_dir=tmp_path)
    assert torch.equal(weights(whole), weights(run))


def test_starting_afresh_in_a_used_folder(tmp_path):
    train(**fresh(), checkpoint_dir=tmp_path)
    train(**fresh(steps=8, lr=1e-3), checkpoint_dir=tmp_path, resume=False)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000007", "step-00000008"]


def test_judging_draws_without_being_noticed():
    a, b = fresh(dropout=0.2), fresh(dropout=0.2, eval_every=3)
    go(a), go(b, evaluate=lambda m: dict(val_x=torch.rand(3).sum()))
    assert torch.equal(weights(a), weights(b))


def test_metrics_may_not_take_the_loops_names():
    def objective(model, batch): return cross_entropy(model, batch)[0], dict(lr=1.0)
    with pytest.raises(ValueError, match="call a metric lr"): train(**fresh() | dict(objective=objective))


def test_accumulated_halves_are_one_batch():
    class Halves(Windows):
        "Each batch of eight as two of four"
        rest = ()

        def __next__(self):
            if len(self.rest) == 0: self.rest = super().__next__().split(4)
            half, self.rest = self.rest[0], self.rest[1:]
            return half

    one, two = fresh(), fresh(accumulate=2)
    one["batches"], two["batches"] = Windows(IDS, 12, 8), Halves(IDS, 12, 8)
    rows = train(**one), train(**two)
    assert torch.allclose(weights(one), weights(two), atol=1e-5)
    assert rows[0][-1]["tokens"] == rows[1][-1]["tokens"] and rows[0][-1]["flops"] == rows[1][-1]["flops"]


def dealt(model, rectangles):
    "The gradient and row of one update on these batches, without a step"
    twin = copy.deepcopy(model)
    row = update(twin, cross_entropy, rectangles, torch.optim.SGD(twin.parameters(), 1.0), 0.0, 1e9)
    return torch.cat([p.grad.flatten() for p in twin.parameters()]), row


def test_it_is_no_matter_how_examples_are_dealt():
    "Texts of 2, 3 and 12 characters: any batches of them give the gradient of the mean over all targets"
    model = fresh()["model"]
    texts = [IDS[i : i + n][None] for i, n in enumerate((3, 13, 4, 13))]
    total = sum(F.cross_entropy(model(t[:, :-1])[0], t[0, 1:], reduction="sum") for t in texts) / 29
    want = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    for rectangles in (texts, texts[::-1], [texts[0], torch.cat([texts[1], texts[3]]), texts[2]]):
        gradient, row = dealt(model, rectangles)
        assert torch.allclose(gradient, want, atol=1e-6) and row["loss"] == pytest.approx(total.item(), rel=1e-6) and row["tokens"] == 29


def test_an_objective_says_what_its_loss_is_a_mean_over():
    class ByRow(Objective):
        def __call__(self, model, batch): return model.weight.sum() * batch, dict(tokens=100 * batch, rows=batch)
        def terms(self, metrics): return metrics["rows"]

    model = torch.nn.Linear(1, 1, bias=False)
    row = update(model, ByRow(), [1, 3], torch.optim.SGD(model.parameters(), 0.1), 0.0, 1e9)
    assert model.weight.grad.item() == pytest.approx((1 * 1 + 3 * 3) / 4) and row["rows"] == pytest.approx(10 / 4) and row["tokens"] == 400


def test_sums_largest_and_smallest_values():
    "Of three batches; what nobody speaks of is a mean, tokens are a sum"
    class Described(Objective):
        reductions = dict(generated="sum", reward_max="max", reward_min="min")

        def __call__(self, model, batch): return model.weight.sum(), dict(generated=batch, reward_max=batch, reward_min=batch, reward=batch, tokens=2)

    model = torch.nn.Linear(1, 1)
    row = update(model, Described(), [5, 1, 3], torch.optim.SGD(model.parameters(), 0.1), 0.0, 1e9)
    assert {k: row[k] for k in ("generated", "reward_max", "reward_min", "reward", "tokens")} == dict(generated=9, reward_max=5, reward_min=1, reward=pytest.approx(3), tokens=6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_average_moves_once_an_update(accumulate):
    "By hand over the weights after every update, the last one included, however many batches an update has"
    run, after = fresh(accumulate=accumulate, steps=12), []
    averaged = WeightEMA(cross_entropy, run["model"], 0.5)
    mean = weights(run).double()
    train(**run | dict(objective=averaged), callbacks=(lambda row: after.append(weights(run).double()),))
    for n, now in enumerate(after, 1):
        kept = min(0.5, (1 + n) / (10 + n))
        mean = kept * mean + (1 - kept) * now
    assert averaged.updates == 12 and torch.allclose(weights(dict(model=averaged.average)).double(), mean, atol=1e-6)
    assert not any(p.requires_grad for p in averaged.average.parameters())


def test_an_average_passes_on_what_its_objective_says():
    class Inner(Objective):
        updates, reductions = 0, dict(a="max")

        def __call__(self, model, batch): return model.weight.sum(), dict(a=batch, tokens=1)
        def after_update(self, model): self.updates += 1
        def kind(self, model): return "inner"
        def terms(self, metrics): return metrics["a"]

    model, inner = torch.nn.Linear(1, 1), Inner()
    averaged = WeightEMA(inner, model, 0.9)
    row = update(model, averaged, [1, 3], torch.optim.SGD(model.parameters(), 0.1), 0.0, 1e9)
    assert row["a"] == 3 and inner.updates == averaged.updates == 1 and averaged.kind(model) == "inner" and averaged.terms(dict(a=7)) == 7
    with pytest.raises(ValueError, match="decay is 1.0"): WeightEMA(inner, model, 1.0)


def test_an_update_that_is_not_made_counts_for_nothing():
    averaged = WeightEMA(lambda model, batch: (model.weight.sum() * math.nan, {}), model := torch.nn.Linear(1, 1), 0.9)
    update(model, averaged, [None], torch.optim.SGD(model.parameters(), 0.1), 0.1, 1.0)
    assert averaged.updates == 0


class Ragged(Windows):
    "Windows of three lengths"
    def __next__(self):
        windows = super().__next__()
        return windows[:, : (13, 5, 9)[int(windows.sum()) % 3]]


def test_every_kind_of_batch_is_counted():
    "Operations are the sum over all batches; and again after a stop, from where it stopped"
    run, twin = fresh(accumulate=2) | dict(batches=Ragged(IDS, 12, 4)), fresh() | dict(batches=Ragged(IDS, 12, 4))
    rows = train(**run)
    by_hand = [count_flops(twin["model"], cross_entropy, next(twin["batches"])) for _ in range(40)]
    assert [r["flops"] for r in rows] == [sum(by_hand[: 2 * n]) for n in range(1, 21)] and len(set(by_hand)) == 3


def test_costs_are_part_of_a_checkpoint(tmp_path, monkeypatch):
    "A kind that is known is not counted again, so that a resumed run has the numbers of a whole one"
    counts, real = [], train_module._count
    monkeypatch.setattr(train_module, "_count", lambda *args: counts.append(1) or real(*args))
    rows = train(**fresh(), checkpoint_dir=tmp_path)
    shutil.rmtree(list_checkpoints(tmp_path)[-1])
    again = train(**fresh(), checkpoint_dir=tmp_path)
    assert len(counts) == 1 and [r["flops"] for r in rows] == [r["flops"] for r in again]


def test_counting_is_no_training_time(monkeypatch):
    "By a clock that only counting and batches move"
    now, real = [0.0], train_module._count

    def counted(*args):
        now[0] += 100
        return real(*args)

    class Slow(Windows):
        def __next__(self):
            now[0] += 1
            return super().__next__()

    monkeypatch.setattr(train_module, "_count", counted)
    monkeypatch.setattr(train_module.time, "process_time", lambda: now[0])
    assert [r["cpu_seconds"] for r in train(**fresh(steps=3) | dict(batches=Slow(IDS, 12, 4)))] == [1, 2, 3] and now[0] == 103


def test_counting_between_accumulated_batches_leaves_the_gradient():
    model = fresh()["model"]
    cross_entropy(model, IDS[None, :9])[0].backward()
    before = [p.grad.clone() for p in model.parameters()]
    count_flops(model, cross_entropy, IDS[None, :5])
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before))


def test_an_evaluation_in_another_mode_changes_nothing():
    "Dropout goes on, and a part that stands still still does"
    a, b = fresh(dropout=0.2), fresh(dropout=0.2, eval_every=3)

    def freezing(row): b["model"].blocks[1].eval(), a["model"].blocks[1].eval()

    go(a, callbacks=(freezing,)), go(b, evaluate=lambda m: dict(val_x=float(m.eval().training)), callbacks=(freezing,))
    assert torch.equal(weights(a), weights(b)) and b["model"].training and not b["model"].blocks[1].training


def test_an_error_of_weights_that_are_no_numbers_is_no_mistake():
    "Drawing from a distribution of nan raises inside the objective; with whole weights an error stays what it is"
    def drawing(model, batch):
        if not model.head.weight.isfinite().all(): torch.multinomial(model(batch[:, :-1]).softmax(-1)[0], 1)
        return cross_entropy(model, batch)

    run = fresh() | dict(objective=drawing)

    def breaking(row):
        with torch.no_grad(): run["model"].head.weight[0, 0] = math.inf if row["step"] == 4 else 0.0

    with pytest.raises(NonFiniteLoss, match="at step 5") as stopped: train(**run, callbacks=(breaking,))
    assert isinstance(stopped.value.__cause__, RuntimeError)

    def failing(model, batch): raise RuntimeError("mine")
    with pytest.raises(RuntimeError, match="mine"): train(**fresh() | dict(objective=failing))


def test_counting_flops_changes_nothing():
    run = fresh(dropout=0.5)
    batch, before = next(run["batches"]), torch.get_rng_state()
    flops = count_flops(run["model"], cross_entropy, batch)
    assert torch.equal(torch.get_rng_state(), before) and all(p.grad is None for p in run["model"].parameters())
    products = 2 * (12 * 16 * 16) + 16 * 16
    assert flops == 6 * products * 48 + 2 * 7 * 2 * 4 * 12 * 12 * 16


def test_schedule_and_groups():
    cfg = TrainConfig(steps=100, warmup=10, lr=1.0, final_lr=0.1)
    assert [lr_at(s, cfg) for s in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1.0, 1.0, 0.55, 0.1])
    groups = adamw(fresh()["model"], cfg).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0] and all(p.ndim == 1 for p in groups[1]["params"])


@pytest.mark.parametrize("bad", [dict(steps=0), dict(lr=-1.0), dict(accumulate=0), dict(eval_every=0), dict(warmup=-1)])
def test_config_refuses(bad):
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))): TrainConfig(**bad)


@pytest.mark.parametrize("bad", [dict(steps=2.5), dict(accumulate=1.5), dict(lr=math.inf), dict(lr=math.nan), dict(warmup=math.nan), dict(final_lr=math.nan),
                                 dict(weight_decay=math.inf), dict(clip=math.nan)])
def test_settings_that_are_no_numbers_are_refused(bad):
    with pytest.raises((ValueError, TypeError), match=next(iter(bad))): TrainConfig(**bad)


def test_shared_weights_are_refused_before_the_first_step(tmp_path):
    "A checkpoint cannot hold one tensor under two names: found out at once, not at the first save"
    run = fresh()
    run["model"].head.weight = run["model"].token.weight
    with pytest.raises(ValueError, match="token.weight and head.weight share one tensor"): go(run, checkpoint_dir=tmp_path)
    assert not list(tmp_path.iterdir()) and len(go(run)) == 20


# Compiled

@torch.compiler.set_stance("force_eager")  # checked types cannot be compiled
def test_a_compiled_run_and_a_plain_one_read_each_other(tmp_path):
    "The objective is handed the compiled model, an evaluation the plain one; checkpoints have the plain names"
    whole, met = fresh(), []
    rows = go(whole)

    def objective(model, batch):
        met.append(hasattr(model, "_orig_mod"))
        return cross_entropy(model, batch)

    def judged(model): return dict(val_compiled=hasattr(model, "_orig_mod"))

    for first in (True, False):
        folder, again = tmp_path / str(first), fresh() | dict(objective=objective)
        kept = dict(checkpoint_dir=folder, evaluate=judged)
        with pytest.raises(InterruptedError): go(fresh() | dict(objective=objective), callbacks=(stop_at(10),), compile=first, **kept)
        assert set(met[-3:]) == {first} and not any("_orig_mod" in name for name in load_file(list_checkpoints(folder)[-1] / "model.safetensors"))
        resumed = go(again, compile=not first, **kept)
        assert met[-1] is not first and resumed[-1]["val_compiled"] == 0
        assert [r["loss"] for r in resumed] == [r["loss"] for r in rows] and [r["flops"] for r in resumed] == [r["flops"] for r in rows]
        assert torch.equal(weights(whole), weights(again))


def stop_at(step):
    def stopping(row):
        if row["step"] == step: raise InterruptedError
    return stopping


def test_without_a_compiler_compile_is_refused_before_anything_is_touched(tmp_path, monkeypatch):
    calls = []

    def broken(call):
        calls.append(call)
        raise OSError("no compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    run = fresh()
    before = weights(run)
    with pytest.raises(ValueError, match="torch.compile does not work here: no compiler found; install"): go(run, compile=True, checkpoint_dir=tmp_path / "kept")
    assert torch.equal(weights(run), before) and not (tmp_path / "kept").exists() and len(calls) == 1
    go(fresh(steps=2))
    assert len(calls) == 1  # nobody asks for a compiler without the flag


def test_the_bar_is_a_widget_in_jupyterlab_and_text_elsewhere(monkeypatch):
    from tqdm import tqdm
    from tqdm.notebook import tqdm_notebook
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with _bar(total=3) as bar: assert type(bar) is tqdm
    monkeypatch.setenv("JPY_SESSION_NAME", "nbs/09_train.ipynb")
    with _bar(total=3) as bar: assert isinstance(bar, tqdm_notebook)
    with _bar(total=3, disable=True) as bar: bar.update()
