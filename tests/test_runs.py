"""Records of runs: identity, recording, adoption, publication, tables, intervals"""
import gzip, json, math, os, shutil, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from refine_nb import _attempts, cards, parameters, provenance, records, tables
from refine_nb._files import read_jsonl
from refine_nb._attempts import adopt, let_go, new_attempt, publish, published
from refine_nb.parameters import ParameterError
from refine_nb.provenance import run_id, run_key
from refine_nb.statistics import bootstrap_interval, mean_interval, paired_interval
from refine_nb.tables import flat, read_curves, read_runs
from toy_project import toy_cells, write_notebook


# --- identity --------------------------------------------------------------------------------------------------------

def test_key_and_id_see_the_question():
    "The key sees what another run was asked, not its name; the id sees the text itself, not its name"
    one, two = {"warm_start": "run:aaaa"}, {"warm_start": "run:bbbb"}
    assert run_key("e", one, None, {"aaaa": "k"}) == run_key("e", two, None, {"bbbb": "k"}) != run_key("e", two, None, {"bbbb": "other"})
    keys = [run_key("e", {"seed": 0}, None), run_key("f", {"seed": 0}, None), run_key("e", {"seed": 1}, None), run_key("e", {"seed": 0}, "text")]
    assert len(set(keys)) == 4 and len({run_id(k, sha) for k in keys for sha in (None, "1", "2")}) == 12


def test_int_for_float_is_one_id_and_true_is_no_int(tmp_path):
    spec = parameters.read_parameters(write_notebook(tmp_path / "n.ipynb", [("a = 0.5\nb: int | None = None\nc = False", ["parameters"])]))
    assert run_key("", parameters.resolve(spec, {"a": 1}), None) == run_key("", parameters.resolve(spec, {"a": 1.0}), None)
    assert parameters.resolve(spec, {"b": None}) == {"a": 0.5, "b": None, "c": False}
    for given in ({"b": True}, {"c": 0}, {"a": "1"}, {"b": 2.0}):
        with pytest.raises(ParameterError, match="is of type"): parameters.resolve(spec, given)


# --- recording -------------------------------------------------------------------------------------------------------

@pytest.fixture
def project(tmp_path):
    write_notebook(tmp_path / "experiments" / "toy.ipynb", toy_cells())
    return tmp_path


def windows_of(folder):
    "The values behind the intervals of a record"
    return json.loads(gzip.decompress((folder / records.WINDOWS).read_bytes()))


def start(project, **params):
    "A run of the toy experiment, recorded in this process"
    values = {"mode": "fine", "seed": 0, "steps": 4, "pause": 0.0, "warm_start": None} | params
    return records.start_run("toy", values, root=project)


def test_a_record_says_everything(project):
    run = start(project, seed=3)
    for step in (1, 2): run({"step": step, "loss": np.float32(0.5), "tokens": 100 * step, "flops": 7 * step})
    (run.dir / "figure.txt").write_text("kept")
    folder = run.finish({"x": float("nan"), "y": 2}, windows={"w": np.linspace(0, 1, 150)}, deterministic=True, tokens_generated=5)
    record = json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert folder == project / "runs" / record["id"] and record["status"] == "ok" and record["params"]["seed"] == 3
    assert (record["tokens_seen"], record["tokens_generated"], record["flops"]) == (200, 5, 14)
    assert record["metrics"]["x"] is None and record["non_finite"] == ["x"] and record["metrics"]["w_windows"] == 150
    assert record["metrics"]["w"] == pytest.approx(0.5) and record["metrics"]["w_low"] < 0.5 < record["metrics"]["w_high"]
    assert bootstrap_interval(windows_of(folder)["w"]) == (*(record["metrics"][f"w{end}"] for end in ("", "_low", "_high")), 150)
    assert record["files"] == ["figure.txt"] and record["deterministic"] and not record["as_saved"]
    assert {"key", "experiment", "corpus", "versions", "commit", "dirty", "device", "processor", "code", "host", "threads", "cpu_seconds", "wall_seconds", "started", "cards", "dependencies"} <= set(record)
    assert [r["loss"] for r in read_jsonl(folder / "metrics.jsonl")] == [0.5, 0.5]


def test_what_finish_refuses(project):
    run = start(project)
    with pytest.raises(ValueError, match="may not be called key, seed"): run.finish({"seed": 1, "key": 2})
    with pytest.raises(TypeError, match="did you mean 'tokens_seen'"): run.finish({}, token_seen=1)
    with pytest.raises(ValueError, match="at least 100"): run.finish({}, windows={"w": [1.0, 2.0]})
    assert not list((project / "runs").glob("*/run.json"))
    run.finish({"x": 1})
    with pytest.raises(RuntimeError, match="ok already"): run.finish({"x": 1})


def test_what_start_run_refuses(project):
    with pytest.raises(ParameterError, match="was not given pause, warm_start"): records.start_run("toy", {"mode": "fine", "seed": 0, "steps": 4}, root=project)
    with pytest.raises(ParameterError, match="did you mean 'toy'"): records.start_run("toi", {}, root=project)
    with pytest.raises(ParameterError, match="PRESETS in this kernel"): records.start_run("toy", {}, presets={"cpu": {}}, root=project)
    with pytest.raises(ParameterError, match="is not in"): start(project, warm_start="run:0123456789abcdef")
    with pytest.raises(ParameterError, match="is of type str"): start(project, seed="1")


def test_a_copy_that_keeps_the_old_name_is_refused(project, monkeypatch):
    "Its rows would be filed under the other experiment: in a sweep, and where JupyterLab says which notebook runs"
    copy = write_notebook(project / "experiments" / "copy.ipynb", [*toy_cells(), ("x = 1", [])])
    request = project / "request.json"
    request.write_text(json.dumps({"notebook": str(copy), "runs": str(project / "runs"), "needs": {}}))
    monkeypatch.setenv(records.REQUEST, str(request))
    with pytest.raises(ParameterError, match=r"copy.ipynb calls start_run\('toy'\).*write start_run\('copy', …\)"): start(project)
    monkeypatch.delenv(records.REQUEST)
    monkeypatch.setenv("JPY_SESSION_NAME", "experiments/copy.ipynb")
    monkeypatch.setattr(records, "_history", lambda: ["x = 1"])
    with pytest.raises(ParameterError, match="copy.ipynb calls start_run"): start(project)
    monkeypatch.setattr(records, "_history", lambda: ["y = 1"])  # a cell of another notebook
    start(project)


def test_a_damaged_record_is_named(project):
    path = start(project).finish({"x": 1}) / "run.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(_attempts.RecordError, match=r"run.json cannot be read .*line .*: remove the folder .*runs it again"):
        published(path.parent)


def test_what_a_run_builds_on_has_to_go_with_it(project):
    first = start(project, seed=3)
    first.finish({"x": 1})
    run = start(project, seed=3, steps=5, warm_start=f"run:{first.head['id']}")
    assert run.dependency("warm_start", ("seed",), mode="fine") == run.dependency("warm_start") == project / "runs" / first.head["id"]
    with pytest.raises(ValueError, match="does not go with this run: steps is 4 there, 5 is needed; mode is 'fine' there, 'none' is needed"): run.dependency("warm_start", ("seed", "steps"), mode="none")
    with pytest.raises(FloatingPointError):
        with start(project, seed=9) as lost: raise FloatingPointError("nan at step 3")
    with pytest.raises(ValueError, match="is a run that diverged: nan at step 3"): start(project, seed=10, warm_start=f"run:{lost.head['id']}").dependency("warm_start")
    with pytest.raises(ValueError, match="warm_start is 'runs/nothing', needs run:ID"): start(project, seed=4, warm_start="runs/nothing").dependency("warm_start")


def test_a_context_publishes_a_divergence_and_nothing_else(project):
    from refine_nb.train import NonFiniteLoss
    assert issubclass(NonFiniteLoss, FloatingPointError)  # what `train` raises
    with pytest.raises(FloatingPointError):
        with start(project, seed=1): raise FloatingPointError("nan at step 3")
    with pytest.raises(KeyError):
        with start(project, seed=2): raise KeyError("mistake")
    record, = [json.loads(p.read_text()) for p in (project / "runs").glob("*/run.json")]
    assert (record["status"], record["error"], record["params"]["seed"]) == ("diverged", "nan at step 3", 1)


# --- adoption and publication --------------------------------------------------------------------------------------

def dead_attempt(project, rows, checkpoint=b"c"):
    "An attempt that was killed: its rows, a row cut short, a checkpoint"
    run = start(project)
    for row in rows: run(row)
    with open(run.rows, "a") as f: f.write('{"step": 99, "lo')
    (run.checkpoint_dir / "last").write_bytes(checkpoint)
    let_go(run.dir)
    return run.dir


def test_a_new_attempt_goes_on_where_a_dead_one_stopped(project):
    old = dead_attempt(project, [{"step": s, "loss": float(s)} for s in (1, 2, 3)])
    text = (old / "metrics.jsonl").read_text().replace('"cpu_seconds": 0.0', '"cpu_seconds": 50.0')
    (old / "metrics.jsonl").write_text("".join(json.dumps(json.loads(line) | {"cpu_seconds": 50.0}) + "\n" for line in text.split("\n")[:-1]) + '{"cut')
    run = start(project)
    assert not old.exists() and (run.checkpoint_dir / "last").read_bytes() == b"c"
    run.on_resume(2)
    run({"step": 3, "loss": 30.0, "cpu_seconds": 0.1})  # a loop's own clock starts with its process, the record's does not
    rows = read_jsonl(run.rows)
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)] and rows[-1]["cpu_seconds"] >= 50
    run.on_resume(0)  # a second training in the same run starts at its own zero: rows of this process stay
    assert len(read_jsonl(run.rows)) == 3


def test_an_attempt_that_starts_over_drops_adopted_rows(project):
    dead_attempt(project, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    run = start(project)
    run({"step": 1, "loss": 9.0})
    assert [(r["step"], r["loss"]) for r in read_jsonl(run.rows)] == [(1, 9.0)]


def claim(project, at_least):
    "Write the project's one claim card; returns its hash"
    folder = project / "experiments" / "claims"
    folder.mkdir(exist_ok=True)
    (folder / "c.yaml").write_text(f"id: c\nmetric: x\nrule: {{at_least: {at_least}}}\n")
    return cards.card_hashes(folder)


def test_the_first_start_counts(project, monkeypatch):
    "A card edited between a kill and the resumption: the record keeps the hash, the time and the commit of the first start"
    first = claim(project, 1)
    monkeypatch.setattr(provenance, "git", lambda root, *args: "first")
    old = dead_attempt(project, [{"step": 1}])
    began = json.loads((old / "start.json").read_text())
    (old / "start.json").write_text(json.dumps(began | {"started": "2030-01-01T00:00:00+00:00"}))
    assert claim(project, 2) != first
    monkeypatch.setattr(provenance, "git", lambda root, *args: "second")
    let_go((run := start(project)).dir)
    record = json.loads((start(project).finish({"x": 1}) / "run.json").read_text())
    assert not run.dir.exists() and (record["cards"], record["commit"], record["started"]) == (first, "first", "2030-01-01T00:00:00+00:00")
    assert "start.json" not in record["files"]


def test_an_attempt_killed_while_it_adopted_is_completed(project):
    "Killed between two renames: checkpoints are here, metrics there"
    oldest = dead_attempt(project, [{"step": 1, "loss": 1.0}])
    between = new_attempt(project / "runs", oldest.parent.name)
    shutil.copy(oldest / "start.json", between)
    (oldest / "checkpoints").rename(between / "checkpoints")
    let_go(between)
    run = start(project)
    run.on_resume(1)
    assert (run.checkpoint_dir / "last").read_bytes() == b"c" and [r["step"] for r in read_jsonl(run.rows)] == [1]
    assert not oldest.exists() and not between.exists()


@pytest.mark.parametrize("code", ["another", None])
def test_what_other_code_left_in_halves_is_not_adopted(project, code):
    "Killed between two renames, and then the code was edited; an attempt that does not tell its code counts as other"
    oldest = dead_attempt(project, [{"step": 1, "loss": 1.0}])
    began = json.loads((oldest / "start.json").read_text())
    (oldest / "start.json").write_text(json.dumps(began | {"code": code}))
    between = new_attempt(project / "runs", oldest.parent.name)
    _attempts._carry(oldest, between)
    (between / "metrics.jsonl").rename(oldest / "metrics.jsonl")
    let_go(between)
    run = start(project)
    assert not run.adopted and not read_jsonl(run.rows) and not list(run.checkpoint_dir.iterdir())
    assert len(list((project / "runs" / ".replaced").iterdir())) == 2


@pytest.mark.parametrize("text, kind, value", [
    ("8.0", int, 8), ("-3", int, -3), ("1e-3", float, 0.001), ("True", bool, True), ("false", bool, False), ("", int, None),
    ("8.0", str, "8.0"),
])
def test_text_becomes_a_parameter(text, kind, value):
    got = parameters.from_text(text, kind)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text, kind", [("8.5", int), ("yes", bool), ("fast", float)])
def test_text_that_is_no_such_parameter_is_refused(text, kind):
    with pytest.raises(ValueError): parameters.from_text(text, kind)


def test_files_are_durable_before_the_record(project, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), sync(fd)))
    run = start(project)
    run({"step": 1})
    (run.checkpoint_dir / "w").write_bytes(b"w")
    folder = run.finish({"x": 1})
    order = [synced.index((folder / name).stat().st_ino) for name in ("metrics.jsonl", "checkpoints/w", "run.json")]
    assert order[2] == max(order)


HOLDER = "import sys, time; from pathlib import Path; from refine_nb._attempts import new_attempt; f = new_attempt(Path(sys.argv[1]), 'id'); (f / 'metrics.jsonl').touch(); print(f, flush=True); time.sleep(60)"


def test_a_living_attempt_is_left_alone_and_a_dead_one_is_not(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    folder, mine = Path(other.stdout.readline().strip()), new_attempt(tmp_path, "id")
    begun = time.monotonic()
    assert adopt(mine) is False and folder.exists() and time.monotonic() - begun < 5  # nothing to wait for
    other.kill()
    other.wait()
    assert adopt(mine) is True and not folder.exists()


@pytest.mark.parametrize("local", [True, False])
def test_a_changed_hostname_hides_no_checkpoint_on_a_local_disk(project, monkeypatch, local):
    "Where other machines may be at work in the folder, another name may be another machine"
    old = dead_attempt(project, [{"step": 1, "loss": 1.0}])
    monkeypatch.setattr(_attempts.socket, "gethostname", lambda: "other")
    monkeypatch.setattr(_attempts, "_on_local_disk", lambda folder: local)
    assert start(project).adopted is local and old.exists() is not local


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux tells the kind of a file system so")
def test_the_kind_of_a_disk_is_known(tmp_path, monkeypatch):
    mounts = Path("/proc/self/mountinfo").read_text()
    place = f"{os.major(os.stat(tmp_path).st_dev)}:{os.minor(os.stat(tmp_path).st_dev)}"
    said = lambda kind: mounts + f"1 1 {place} / / rw - {kind} disk rw\n"
    monkeypatch.setattr(_attempts, "_LOCAL", {"mine"})
    for kind, local in (("mine", True), ("nfs4", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, kind=kind, **kwargs: said(kind))
        assert _attempts._on_local_disk(tmp_path) is local


def test_an_orphan_kernel_is_waited_for(tmp_path):
    "The creator is dead, but a process it started still holds the attempt: adopted when that ends, not before"
    folder, mine = new_attempt(tmp_path, "id"), new_attempt(tmp_path, "id")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    let_go(folder)
    orphaned = folder.rename(folder.with_name(folder.name.replace(f"-{os.getpid()}-", f"-{gone.pid}-")))
    (orphaned / "metrics.jsonl").touch()
    kernel = subprocess.Popen([sys.executable, "-c", "import os, sys, fcntl, time; fd = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(fd, fcntl.LOCK_SH); print(1, flush=True); time.sleep(1)", str(orphaned)], stdout=subprocess.PIPE)
    kernel.stdout.readline()
    assert adopt(mine, wait=0.2) is False and orphaned.exists()
    assert adopt(mine, wait=20) is True and kernel.wait() == 0


def test_publication_happens_once_and_saved_code_wins(project):
    runs, target = project / "runs", project / "runs" / "id"
    def attempt(mark, as_saved):
        folder = new_attempt(runs, "id")
        (folder / "run.json").write_text(json.dumps({"mark": mark, "as_saved": as_saved}))
        return folder
    assert publish(attempt(1, False), target) and published(target) is None
    assert not publish(attempt(2, False), target)
    assert publish(attempt(3, True), target) and published(target)["mark"] == 3
    assert not publish(attempt(4, True), target) and published(target)["mark"] == 3


SHELL = '''
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell, cells = InteractiveShell.instance(), json.loads(sys.argv[1])
for cell in cells: shell.run_cell(cell, store_history=True).raise_error()
'''


@pytest.mark.parametrize("change, as_saved", [
    (lambda cells: cells, True),
    (lambda cells: ["print('looking around')", cells[0], "1 + 1", *cells[1:]], True),
    (lambda cells: [cells[0], cells[1].replace("x = 1", "x = 2"), cells[2]], False),
    (lambda cells: [cells[1], cells[0], cells[2]], False),
])
def test_code_that_is_not_in_the_file_is_noticed(tmp_path, change, as_saved):
    cells = ["import os\nseed = 0", "x = 1", "from refine_nb.records import start_run\nstart_run('n', {'seed': 0}).finish({'x': x})"]
    write_notebook(tmp_path / "experiments" / "n.ipynb", [("seed = 0", ["parameters"]), *((c, []) for c in cells)])
    done = subprocess.run([sys.executable, "-c", SHELL, json.dumps(change(cells))], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record, = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/run.json")]
    assert record["as_saved"] is as_saved


def test_a_library_edited_under_a_living_kernel_is_noticed(monkeypatch):
    import refine_nb.data
    newest = max(p.stat().st_mtime for p in provenance.PACKAGE.glob("*.py"))
    monkeypatch.setattr(records, "_IMPORTED", newest + 1)
    assert not records._edited_since_import()
    monkeypatch.setattr(records, "_IMPORTED", Path(refine_nb.data.__file__).stat().st_mtime - 1)
    assert records._edited_since_import()


def test_a_repetition_with_other_numbers_takes_the_place(project, monkeypatch, capsys):
    monkeypatch.setattr(records, "_as_saved", lambda notebook: True)
    def record(x): return json.loads((start(project).finish({"x": x}) / "run.json").read_text())
    first = record(1.0)
    assert record(1.0)["started"] == first["started"] and "this repetition is dropped" in capsys.readouterr().out
    second = record(2.0)
    assert second["id"] == first["id"] and second["metrics"] == {"x": 2.0} and "recorded before with other numbers" in capsys.readouterr().out
    aside, = (project / "runs" / ".replaced").iterdir()
    assert json.loads((aside / "run.json").read_text())["metrics"] == {"x": 1.0}


def test_an_attempt_of_other_code_is_set_aside(project, monkeypatch, capsys):
    old = dead_attempt(project, [{"step": 1, "loss": 1.0}])
    monkeypatch.setattr(records, "code_hash", lambda notebook: "other")
    run = start(project)
    assert not old.exists() and read_jsonl(run.rows) == [] and not run.adopted and "an unfinished attempt of other code" in capsys.readouterr().out
    aside, = (project / "runs" / ".replaced").iterdir()
    assert (aside / "metrics.jsonl").exists() and aside.name.startswith(run.head["id"])


def test_the_processor_is_told_as_torch_sees_it(monkeypatch):
    import torch
    assert torch.backends.cpu.get_cpu_capability() in provenance.processor().split(", ")
    narrow, wide = {"avx2", "fma"}, {"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert [provenance._instructions(f) for f in (set(), narrow, wide, wide | {"amx_tile"})] == [["DEFAULT"], ["AVX2"], ["AVX512"], ["AVX512", "AMX"]]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert provenance._instructions(wide) == ["AVX2"]


# --- tables --------------------------------------------------------------------------------------------------------

def record(id, key, started, **params):
    "A run.json with little in it"
    return {"id": id, "key": key, "experiment": "e", "status": "ok", "params": params, "metrics": {"loss": 1.0}, "corpus": None, "started": started}


def test_a_table_tells_the_cards_of_its_rows(tmp_path):
    rows = [flat(record(i, i, "2030") | {"cards": c}) for i, c in (("a", {"c": "1"}), ("b", {}))] + [flat(record("d", "d", "2030")) | {"cards": '{"c": "2"}'}]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(tables.TableError, match="cards.json has no .*: restore it"): read_runs(tmp_path)
    (tmp_path / "cards.json").write_text(json.dumps({rows[0]["cards"]: {"c": "1"}}))
    assert [json.loads(c) for c in read_runs(tmp_path)["cards"]] == [{"c": "1"}, {}, {"c": "2"}]


def test_a_table_reads_back_what_was_written(tmp_path):
    rows = [flat(record("12e4567890123456", "k1", "2030", name="NA", lr=None)), flat(record("0000000000000012", "k2", "2030", name="None", lr=0.1))]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    table = read_runs(tmp_path)
    assert list(table["id"]) == ["12e4567890123456", "0000000000000012"] and list(table["name"]) == ["NA", "None"] and math.isnan(table["lr"][0])
    pd.DataFrame({"id": table["id"], "step": 1, "lr": [0.3, 0.4], "val_loss": 2.0}).to_csv(tmp_path / "curves.csv", index=False)
    curves = read_curves(tmp_path)
    assert list(curves["lr"]) == [0.3, 0.4] and curves["lr_param"][1] == 0.1 and list(curves["name"]) == ["NA", "None"]


def test_one_row_a_key_the_latest(tmp_path):
    rows = [flat(record(i, k, s)) for i, k, s in (("a", "1", "2030"), ("b", "1", "2031"), ("c", "2", "2031"), ("d", "2", "2030"))]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    assert list(read_runs(tmp_path)["id"]) == ["b", "c"] and len(read_runs(tmp_path, every=True)) == 4
    with pytest.raises(FileNotFoundError, match="no runs in"): read_runs(tmp_path / "nowhere")


def test_the_columns_are_those_of_a_row():
    assert list(flat(record("a", "1", "2030") | {"metrics": {}})) == parameters.IDENTITY + parameters.TAIL


@pytest.mark.parametrize("name", ["device", "threads", "status", "id", "key", "started", "processor"])
def test_a_parameter_named_like_a_column_is_refused(tmp_path, name):
    notebook = write_notebook(tmp_path / "n.ipynb", [(f"seed = 0\n{name} = 'x'", ["parameters"])])
    with pytest.raises(ParameterError, match=f"may not be called {name}"): parameters.read_parameters(notebook)


def test_a_parameter_declared_as_text_stays_text(tmp_path):
    write_notebook(tmp_path / "experiments" / "e.ipynb", [("code = '00'\nseed = 0\nwarm: str = None", ["parameters"])])
    (tmp_path / "results" / "s").mkdir(parents=True)
    pd.DataFrame([flat(record(i, i, "2030", code=c, seed=0, warm=None)) for i, c in (("a", "01"), ("b", "1"))]).to_csv(tmp_path / "results" / "s" / "runs.csv", index=False)
    table = read_runs(tmp_path / "results" / "s")
    assert list(table["code"]) == ["01", "1"] and list(table["seed"]) == [0, 0] and table["warm"].isna().all()


def test_rows_from_before_a_parameter_count_with_its_default(tmp_path):
    "Typed, by preset where the notebook says so, and as the same question as a new row"
    write_notebook(tmp_path / "experiments" / "e.ipynb", [('seed = 0\ndepth: int = None\npreset = "cpu"\nflag = True\nPRESETS = {"cpu": {"depth": 2}}', ["parameters"])])
    folder = tmp_path / "results" / "s"
    folder.mkdir(parents=True)
    new = dict(seed=1, depth=2, preset="cpu", flag=True)
    rows = [flat(record(f"old{s}", f"k{s}", "2030", seed=s, preset="cpu")) for s in (0, 1)]
    rows.append(flat(record("new1", run_key("e", new, None), "2031", **new)))
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    table = read_runs(folder)
    assert list(table["id"]) == ["old0", "new1"] and list(table["depth"]) == [2, 2] and list(table["flag"]) == [True, True]
    assert set(table["parameters"][0].split()) == set(new) and len(read_runs(folder, every=True)) == 3


def test_runs_of_unsaved_code_are_not_read(project):
    start(project, seed=1).finish({"x": 1})
    with pytest.raises(FileNotFoundError, match="unsaved code"): read_runs(project / "runs")
    path = next((project / "runs").glob("*/run.json"))
    path.write_text(path.read_text().replace('"as_saved": false', '"as_saved": true'))
    assert list(read_runs(project / "runs")["seed"]) == [1]


# --- intervals -----------------------------------------------------------------------------------------------------

def test_student_intervals_are_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    for ours, theirs in ((mean_interval(a), stats.ttest_1samp(a, 0)), (paired_interval(a, b), stats.ttest_rel(a, b))):
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
        assert ours.n == 7


def test_pairs_are_made_by_seed_and_not_by_position():
    a, b = pd.Series({2: 20.0, 1: 10.0, 9: 5.0}), {1: 9.0, 2: 18.0, 3: 0.0}
    assert paired_interval(a, b).mean == pytest.approx(1.5) and paired_interval(a, b).n == 2
    with pytest.raises(ValueError, match="no random seed in common"): paired_interval({1: 1.0}, {2: 1.0})
    with pytest.raises(ValueError, match="cannot be paired"): paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="or neither"): paired_interval({1: 1.0}, [1.0])


def test_bootstrap_repeats_follows_skew_and_refuses_few():
    x = np.random.default_rng(0).exponential(size=300)
    interval = bootstrap_interval(x)
    assert interval == bootstrap_interval(list(x)) and interval.high - interval.mean > interval.mean - interval.low
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * x.std() / 300 ** 0.5, rel=0.1)
    assert bootstrap_interval([2.0] * 100)[:3] == (2.0, 2.0, 2.0)
    for bad, says in (([1.0] * 99, "at least 100"), ([float("nan")] * 100, "100 of 100 values are not finite")):
        with pytest.raises(ValueError, match=says): bootstrap_interval(bad)
    with pytest.raises(ValueError, match="at least 1"): mean_interval([])


def test_whole_numbers_can_be_paired():
    "Such as a number of spikes, which a table holds as integers"
    assert paired_interval({0: np.int64(3), 1: np.int64(5)}, {0: np.int64(1), 1: np.int64(2)}) == mean_interval([2.0, 3.0])
