"""Sweeps under fire: processes are really killed, sweeps really run at once."""
import json, os, random, shutil, signal, subprocess, sys, threading, time
from contextlib import nullcontext

import pytest

from refine_nb._executed import parse_executed, write_executed
from refine_nb.cards import CardError
from refine_nb.parameters import ParameterError
from refine_nb.records import write_windows
from refine_nb.tables import TableError, read_curves, read_runs, read_table, read_windows
from refine_nb.sweep import make_plan, read_sweep, SweepError
from refine_nb.tables import join_tables, merge_records, write_table
from refine_nb._pool import local_engine
from toy_project import BODY, PARAMETERS, Toy, gone, kill, nap, toy_cells, worker_of, write_notebook

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def toy(tmp_path): return Toy(tmp_path)


def git(root, *args, check=True):
    "What git says in a folder"
    done = subprocess.run(["git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@t", *args], capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


def commit(root):
    "Commit all of a project but its runs"
    if not (root / ".git").exists(): git(root, "init", "-q")
    (root / ".gitignore").write_text("runs/\n.gitignore\nexecutions.log\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")


def complete(toy, runs, sweep="s"):
    "All runs are published and in the table, whole, once"
    table = read_runs(toy.root / "results" / sweep, every=True)
    assert len(toy.published()) >= runs and len(table) == runs and table["id"].is_unique
    curves = read_curves(toy.root / "results" / sweep)
    for id, curve in curves.groupby("id"): assert list(curve["step"]) == [1, 2, 3, 4], id
    assert set(curves["id"]) == set(table["id"])
    assert (table["x"] == 4 * (table["seed"] + 1)).all()
    return table.set_index("id")


# --- killing ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("victim", ["worker", "kernel"])
def test_a_killed_process_costs_no_finished_step(toy, victim):
    sweep = toy.sweep("  - {seed: [0, 1], pause: 0.4}")
    driver = toy.start("sweep", sweep, "--workers", 2)
    folder, row = toy.at_work()
    kill(worker_of(folder) if victim == "worker" else int(row["pid"]))
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, out + err
    table = complete(toy, 2)
    hit = folder.parent.name
    assert table["resumed_from"][hit] >= 2 and table["resumed_from"].drop(hit).tolist() == [0]
    assert sorted(toy.executions()) == sorted([*table.index, hit])


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_driver_leaves_no_process_and_the_next_one_goes_on(toy):
    sweep = toy.sweep("  - {seed: 0}\n  - {seed: [1, 2], pause: 0.5}")
    driver = toy.start("sweep", sweep, "--workers", 1)
    toy.wait_for(lambda: toy.published())
    finished = {p: p.stat().st_mtime_ns for p in toy.root.glob("runs/[!.]*/*")}
    folder, row = toy.at_work()
    kill(driver.pid)
    driver.communicate()
    toy.wait_for(lambda: gone(worker_of(folder)) and gone(int(row["pid"])), 10)
    code, out, err = toy.run("sweep", sweep, "--workers", 1)
    assert code == 0 and "3 runs, 1 done, 2 to run" in out, out + err
    table = complete(toy, 3)
    assert table["resumed_from"][folder.parent.name] >= 2
    assert finished == {p: p.stat().st_mtime_ns for p in finished}


def test_ctrl_c_says_how_to_resume(toy):
    sweep = toy.sweep("  - {seed: 0, pause: 5.0}")
    driver = toy.start("sweep", sweep)
    toy.wait_for(lambda: toy.executions())
    attempt = next(toy.root.glob("runs/.attempts/*/*-*-*"))
    os.killpg(driver.pid, signal.SIGINT)
    out, err = driver.communicate(timeout=20)
    assert driver.returncode == 130 and "the same command again" in out and "Traceback" not in out + err
    assert gone(worker_of(attempt)) and not toy.published()


def test_ctrl_c_that_another_thread_gets_is_heard():
    "The system may hand a signal to any thread; the main one then sleeps on in its wait, unless it looks up now and then"
    elsewhere = threading.Timer(2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
    begun, before = time.monotonic(), signal.getsignal(signal.SIGINT)
    elsewhere.start()
    with pytest.raises(KeyboardInterrupt): list(local_engine([{"id": "a", "seconds": 12}], 1, nap))
    assert time.monotonic() - begun < 8 and signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_table_is_written_waits_for_it():
    "Between two runs the driver writes its tables: the signal is noted and ends the sweep afterwards, a second one ends it at once"
    ends = local_engine([{"id": i, "seconds": 0} for i in "ab"], 1, nap)
    next(ends)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): next(ends)


def test_a_worker_killed_while_idle_is_replaced():
    ends, pids = local_engine([{"id": i, "seconds": 0} for i in "abc"], 1, nap), []
    for _, outcome, pid in ends:
        assert outcome == "ok"
        pids.append(int(pid))
        kill(pids[-1])
        time.sleep(0.3)  # the pool notices
    assert len(set(pids)) == 3


def test_an_error_after_finish_costs_no_result(toy):
    "A mistake in a report cell: the record is complete, so it stands, and the line of the run tells"
    write_notebook(toy.notebook, toy_cells(report="1 / 0"))
    sweep = toy.sweep("  - {seed: 0}")
    code, out, err = toy.run("sweep", sweep)
    assert code == 0 and "ZeroDivisionError: division by zero (after run.finish: the result stands)" in out, out + err
    complete(toy, 1)
    assert not make_plan(sweep).todo and not list(toy.root.glob("runs/.failed/*"))


def test_after_a_mistake_of_the_users_work_goes_on_from_the_checkpoint(toy):
    flag = toy.root / "mended"
    write_notebook(toy.notebook, toy_cells(body=BODY.replace('if mode == "error": raise', f'if not os.path.exists({str(flag)!r}): raise')))
    sweep = toy.sweep("  - {seed: 0}")
    assert toy.run("sweep", sweep)[0] == 1
    kept = next(toy.root.glob("runs/.failed/*"))
    assert "KeyError" in (kept / "traceback.txt").read_text() and (kept / "executed.ipynb").exists()
    flag.touch()
    assert toy.run("sweep", sweep)[0] == 0
    assert complete(toy, 1)["resumed_from"].tolist() == [4] and not kept.exists()


def test_each_way_to_end(toy):
    "An error, a divergence, a run that always kills its worker: the neighbour finishes, nothing is tried too often"
    sweep = toy.sweep("  - {mode: [fine, error, diverges, kills_worker]}")
    code, out, err = toy.run("sweep", sweep, "--workers", 2)
    ids = {h["params"]["mode"]: i for i, h in make_plan(sweep).identities.items()}
    assert code == 1, out + err
    assert {m: toy.executions().count(i) for m, i in ids.items()} == {"fine": 1, "error": 1, "diverges": 1, "kills_worker": 3}
    assert {toy.published()[ids[m]]["status"] for m in ("fine",)} == {"ok"} and toy.published()[ids["diverges"]]["status"] == "diverged"
    assert set(toy.published()) == {ids["fine"], ids["diverges"]}
    failed = {m: (toy.root / "runs" / ".failed" / ids[m] / "traceback.txt").read_text() for m in ("error", "kills_worker")}
    assert "KeyError" in failed["error"] and "worker died, 3 times" in failed["kills_worker"]
    table = read_runs(toy.root / "results" / "s").set_index("mode")
    assert table["status"].to_dict() == {"fine": "ok", "diverges": "diverged"} and table["threads"].tolist() == [1, 1]
    assert all(any(l.startswith(w) and ids[m] in l for l in out.split("\n")) for w, m in (("ok", "fine"), ("failed", "error"), ("diverged", "diverges"), ("failed", "kills_worker")))
    assert "100%" in err and "Traceback" not in out + err
    errors_only = toy.sweep("  - {mode: [fine, error, diverges]}")
    assert toy.run("sweep", errors_only)[0] == 1  # the next sweep tries the error again, and only that
    assert {m: toy.executions().count(ids[m]) for m in ("fine", "error", "diverges")} == {"fine": 1, "error": 2, "diverges": 1}


def test_two_drivers_share_the_work(toy):
    sweep = toy.sweep("  - {seed: [0, 1, 2], pause: 0.1}")
    drivers = [toy.start("sweep", sweep, "--workers", 1) for _ in range(2)]
    ends = [(d.communicate(timeout=90), d.returncode) for d in drivers]
    assert [code for _, code in ends] == [0, 0], ends
    table = complete(toy, 3)
    assert sorted(toy.executions()) == sorted(table.index)


LOOP = '''
import json, sys
from pathlib import Path
from refine_nb._files import json_digest
from refine_nb._attempts import new_attempt
from refine_nb.records import Run
from refine_nb.tables import merge_records
root, start = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for i in range(start, start + 100000):
    id = json_digest(i)
    identity = {"id": id, "key": id, "experiment": "loop", "params": {"i": i}, "corpus": None, "dependencies": {}, "cards": {}, "as_saved": True}
    run = Run(identity, new_attempt(root / "runs", id), root / "none.ipynb", lambda: True, False)
    for step in (1, 2, 3): run({"step": step, "val_x": i})
    for part in range(10): (run.checkpoint_dir / f"w{part}").write_text("w" * 1000)
    run._close({"x": i}, {}, "ok", False, None)
    merge_records(root / "results", [json.loads((run.dir / "run.json").read_text())], root / "runs", [])
'''


def runs_in(folder):
    "What was published there"
    return [p for p in (folder / "runs").glob("*") if not p.name.startswith(".")]


def test_at_whatever_moment_it_is_killed_nothing_is_half_there(tmp_path):
    "Publishing and merging in a loop, killed at random moments; then every run is whole and every row has its curve"
    (tmp_path / "none.ipynb").write_text('{"cells": []}')
    dice, folders = random.Random(0), []
    for round in range(8):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path), str(round * 100000)], stdout=subprocess.PIPE)
        process.stdout.readline()
        before, until = len(folders), time.monotonic() + 60
        while len(runs_in(tmp_path)) < before + 2 and process.poll() is None and time.monotonic() < until: time.sleep(0.005)
        assert process.poll() is None  # it is at work
        time.sleep(dice.uniform(0, 0.4))
        process.kill()
        process.wait()
        folders = runs_in(tmp_path)
        for folder in folders:
            record = json.loads((folder / "run.json").read_text())
            assert len(record["files"]) == 10 and all((folder / name).stat().st_size == 1000 for name in record["files"])
            assert len((folder / "metrics.jsonl").read_text().split("\n")) == 4
        rows, curves = (read_table(tmp_path / "results" / f"{n}.csv") for n in ("runs", "curves"))
        ids = [r["id"] for r in rows]
        assert len(set(ids)) == len(ids) and set(ids) <= {f.name for f in folders}
        assert all([c["id"] for c in curves].count(i) == 3 for i in ids)
    assert len(folders) > 10


# --- one id, one truth ---------------------------------------------------------------------------------------------

def test_papermill_and_the_sweep_give_one_id(toy):
    done = subprocess.run([sys.executable, "-m", "papermill", "experiments/toy.ipynb", "out.ipynb", "-k", "python3", "-p", "seed", "7"], cwd=toy.root, env=toy.env, capture_output=True)
    assert done.returncode == 0, done.stderr
    (id, record), = toy.published().items()
    assert record["as_saved"] and record["params"]["seed"] == 7
    code, out, _ = toy.run("sweep", toy.sweep("  - {seed: 7}"), cwd="/")
    assert code == 0 and "1 done, 0 to run" in out and toy.executions() == [id]
    assert complete(toy, 1).index[0] == id


def test_a_row_survives_any_change_of_code_and_is_repeated_on_request(toy):
    sweep = toy.sweep("  - {seed: [0, 1]}")
    toy.run("sweep", sweep)
    before = complete(toy, 2)
    write_notebook(toy.notebook, toy_cells(body=BODY.replace('"x": start + steps', '"x": 100 + start + steps')))
    code, out, _ = toy.run("sweep", sweep)
    assert code == 0 and "2 done, 0 to run" in out and len(toy.executions()) == 2
    assert read_runs(toy.root / "results" / "s").set_index("id")["x"].equals(before["x"])
    assert toy.run("sweep", sweep, "--refresh", "--where", "seed=1")[0] == 0
    table = read_runs(toy.root / "results" / "s", every=True).set_index("id")
    assert set(table.index) == set(before.index) and sorted(table["x"]) == [4, 108]
    assert len(list((toy.root / "runs" / ".replaced").iterdir())) == 1
    curves = read_curves(toy.root / "results" / "s")
    assert len(curves) == 8 and set(curves["id"]) == set(table.index)


@needs_git
def test_a_repetition_that_was_interrupted_goes_on(toy):
    "Rows of this commit and processor are not repeated, those of others are"
    sweep = toy.sweep("  - {seed: [0, 1]}")
    commit(toy.root)
    assert toy.run("sweep", sweep)[0] == 0
    assert not make_plan(sweep, refresh=True).todo
    (toy.root / "note.txt").write_text("another commit")
    commit(toy.root)
    assert len(make_plan(sweep, refresh=True).todo) == 2
    assert toy.run("sweep", sweep, "--refresh", "--where", "seed=0")[0] == 0
    assert make_plan(sweep, refresh=True).todo == [i for i, h in make_plan(sweep).identities.items() if h["params"]["seed"] == 1]
    table = toy.root / "results" / "s" / "runs.csv"
    name = read_table(table)[0]["processor"]
    table.write_text(table.read_text().replace(name, "another processor"))
    shutil.rmtree(toy.root / "runs")
    assert len(make_plan(sweep, refresh=True).todo) == 2 and not make_plan(sweep).todo


def test_a_new_parameter_leaves_rows_as_they_are(toy):
    "A row from before it counts with the default; another value is another question"
    sweep = toy.sweep("  - {seed: [0, 1]}")
    assert toy.run("sweep", sweep)[0] == 0
    write_notebook(toy.notebook, toy_cells(PARAMETERS + "depth = 2"))
    assert not make_plan(sweep).todo and read_runs(toy.root / "results" / "s")["depth"].tolist() == [2, 2]
    deeper = toy.sweep("  - {seed: [0, 1], depth: [2, 3]}")
    assert len(make_plan(deeper).todo) == 2
    code, out, err = toy.run("sweep", deeper)
    assert code == 0 and "4 runs, 2 done, 2 to run" in out, out + err
    assert sorted(read_runs(toy.root / "results" / "s")[["seed", "depth"]].values.tolist()) == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_a_new_parameter_of_a_warm_start_leaves_what_builds_on_it(toy):
    "The key of a run holds the key of the run it builds on: both are asked anew"
    toy.sweep("  - {seed: 0}", "warm")
    sweep = toy.sweep("  - {seed: 5, warm_start: {sweep: warm, where: {seed: 0}}}")
    assert toy.run("sweep", sweep)[0] == 0
    write_notebook(toy.notebook, toy_cells(PARAMETERS + "depth = 2"))
    assert not make_plan(sweep).todo
    more = toy.sweep("  - {seed: [5, 6], warm_start: {sweep: warm, where: {seed: 0}}}")
    code, out, err = toy.run("sweep", more)
    assert code == 0 and "1 ok" in out, out + err  # its kernel takes the key that the sweep gave the warm start
    assert len(toy.executions()) == 3


def test_a_repeated_warm_start_with_other_numbers_is_said(toy):
    toy.sweep("  - {seed: 0}", "warm")
    sweep = toy.sweep("  - {seed: 5, warm_start: {sweep: warm, where: {seed: 0}}}")
    assert toy.run("sweep", sweep)[0] == 0
    shutil.rmtree(toy.root / "runs")
    write_notebook(toy.notebook, toy_cells(body=BODY.replace('"x": start + steps', '"x": 100 + start + steps')))
    more = toy.sweep("  - {seed: [5, 6], warm_start: {sweep: warm, where: {seed: 0}}}")
    code, out, err = toy.run("sweep", more)
    assert code == 0 and "x not as in its row, which stays" in out and out.count("not as in its row") == 1, out + err
    assert read_runs(toy.root / "results" / "warm")["x"].tolist() == [4]


@needs_git
def test_no_row_comes_from_code_that_no_commit_holds(toy):
    "Neither of code that is not committed, nor of a record of such code that lies in runs/"
    sweep = toy.sweep("  - {seed: 0}")
    commit(toy.root)
    other = BODY.replace('"x": start + steps', '"x": 100 + start + steps')
    write_notebook(toy.notebook, toy_cells(body=other))
    code, _, err = toy.run("sweep", sweep)
    assert code == 2 and "experiments/toy.ipynb differ from the last commit" in err and not toy.executions()
    assert toy.run("sweep", sweep, "--results", toy.root / "elsewhere")[0] == 0
    write_notebook(toy.notebook, toy_cells())
    assert toy.run("sweep", sweep)[0] == 0 and read_runs(toy.root / "results" / "s")["x"].tolist() == [4]
    assert read_runs(toy.root / "elsewhere" / "s")["x"].tolist() == [104]


def test_code_changed_in_the_middle_of_a_sweep_is_not_published(toy):
    sweep = toy.sweep("  - {seed: 0, pause: 0.3}\n  - {seed: 1}")
    driver = toy.start("sweep", sweep, "--workers", 1)
    toy.at_work()
    write_notebook(toy.notebook, toy_cells(body=BODY + "\nextra = 1"))
    driver.communicate(timeout=60)
    assert driver.returncode == 1 and [r["params"]["seed"] for r in toy.published().values()] == [0]  # it began before
    said, = [p.read_text() for p in toy.root.glob("runs/.failed/*/traceback.txt")]
    assert "the code was changed after the sweep was planned" in said


def test_a_comment_saved_while_runs_are_at_work_costs_none(toy):
    "Neither the run at work nor the next one; a start-up file of IPython and a kernel that dies after `finish` neither"
    startup = toy.root / "ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(f"open({str(toy.root / 'started')!r}, 'w').close()")
    toy.env["IPYTHONDIR"] = str(toy.root / "ipython")
    dies = "import os\nos.kill(os.getpid(), 9)"
    write_notebook(toy.notebook, toy_cells(report=dies))
    driver = toy.start("sweep", toy.sweep("  - {seed: 0, pause: 0.3}\n  - {seed: 1}"), "--workers", 1)
    toy.at_work()
    commented = BODY.replace("run = start_run", "# a comment\nrun =   start_run")
    write_notebook(toy.notebook, [*toy_cells(body=commented, report=dies), ("# what comes next", [])])
    out, err = driver.communicate(timeout=90)
    assert driver.returncode == 0 and complete(toy, 2)["resumed_from"].tolist() == [0, 0], out + err
    assert out.count("(after run.finish: the result stands)") == 2 and not (toy.root / "started").exists()
    assert not list(toy.root.glob("runs/*/.ipython"))


# --- what goes wrong in the driver -----------------------------------------------------------------------------------

def left_record(toy, spec, name="run.json"):
    "What a run of the toy leaves, without running it"
    folder = toy.root / "runs" / spec["id"]
    folder.mkdir(parents=True)
    said = {k: spec[k] for k in ("id", "key", "experiment", "params", "corpus", "code")}
    said |= {"status": "ok", "error": None, "metrics": {"x": 1.0}, "as_saved": True, "dirty": False, "cards": {},
             "started": "2030-01-01", "cpu_seconds": 1.0, "files": []}
    (folder / "metrics.jsonl").write_text('{"step": 1, "val_x": 1.0}\n')
    (folder / name).write_text(json.dumps(said))


def broken(error):
    "A function that raises"
    def fails(*args, **kwargs): raise error
    return fails


@pytest.mark.parametrize("name, error, outcomes, says", [
    ("merge_records", OSError(28, "No space left on device"), ["ok"] * 3, "not in its table yet"),
    ("_outcome_line", KeyError("cpu_seconds"), ["ok"] * 3, "KeyError"),
    ("_archive_incomplete", PermissionError("runs"), ["failed"] * 3, "could not be started: PermissionError"),
    ("_worker_spec", FileNotFoundError("toy.ipynb"), ["failed"] * 3, "could not be started: FileNotFoundError"),
    ("_missing_need", TypeError("None"), ["failed"] * 3, "could not be started: TypeError"),
])
def test_an_error_of_the_driver_costs_no_run(toy, monkeypatch, capsys, name, error, outcomes, says):
    from refine_nb import execute
    plan, left = make_plan(toy.sweep("  - {seed: [0, 1, 2]}")), []

    def engine(specs, workers):
        for spec in specs:
            left_record(toy, spec)
            left.append(spec["id"])
            yield spec, "ok", ""

    monkeypatch.setattr(execute, name, broken(error))
    if name == "merge_records":
        with pytest.raises(SweepError, match="3 finished runs are not in their table: .*No space left"):
            execute.execute_plan(plan, 1, engine)
        monkeypatch.undo()
        assert len(left) == 3 and execute.execute_plan(make_plan(plan.sweep.root / "experiments/sweeps/s.yaml"), 1, engine) == {}
        execute._merge_published(plan, [*plan.identities])
        assert len(read_runs(toy.root / "results" / "s")) == 3
    else: assert list(execute.execute_plan(plan, 1, engine).values()) == outcomes and len(left) == outcomes.count("ok")
    assert says in capsys.readouterr().out


def test_a_table_that_cannot_be_written_once_is_written_later(toy, monkeypatch):
    from refine_nb import execute
    calls, whole = [], execute.merge_records

    def merge_fails_first(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1: raise TableError("in conflict, for a moment")
        return whole(*args, **kwargs)

    def engine(specs, workers):
        for spec in specs:
            left_record(toy, spec)
            yield spec, "ok", ""

    monkeypatch.setattr(execute, "merge_records", merge_fails_first)
    execute.execute_plan(make_plan(toy.sweep("  - {seed: [0, 1, 2]}")), 1, engine)
    assert len(read_runs(toy.root / "results" / "s")) == 3


def raise_in_worker(spec):
    "A piece of work that breaks where no run is at fault"
    if spec["id"] == "bad": raise OSError(28, "No space left on device")
    return "ok", ""


def test_an_error_in_a_worker_costs_its_run_alone():
    ended = list(local_engine([{"id": i, "runs": "nowhere"} for i in ("a", "bad", "b")], 1, raise_in_worker))
    assert [(s["id"], outcome) for s, outcome, _ in ended] == [("a", "ok"), ("bad", "failed"), ("b", "ok")]
    assert "No space left" in ended[1][2]


def test_a_reader_who_leaves_costs_no_run(toy):
    driver = subprocess.Popen(f"{sys.executable} -m refine_nb._cli sweep {toy.sweep('  - {seed: [0, 1]}')} --workers 2 | head -1",
                              shell=True, cwd=toy.root, env=toy.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = driver.communicate(timeout=90)
    complete(toy, 2)
    assert out.startswith("s: 2 runs") and "Traceback" not in err, err


@pytest.mark.parametrize("error", [TimeoutError("Timeout waiting for IOPub output"), RuntimeError("Kernel died")])
def test_a_complete_record_is_published_whatever_ends_its_kernel(toy, monkeypatch, error):
    from refine_nb import _pool
    from refine_nb.execute import _worker_spec
    plan = make_plan(toy.sweep("  - {seed: 0}"))
    spec = _worker_spec(plan, plan.todo[0])

    def finishes_and_fails(spec, folder):
        left_record(toy, spec, "record.json")
        for path in (toy.root / "runs" / spec["id"]).iterdir(): path.rename(folder / path.name)
        (toy.root / "runs" / spec["id"]).rmdir()
        raise error

    monkeypatch.setattr(_pool, "run_notebook", finishes_and_fails)
    assert _pool.execute_one(spec) == ("ok", f"{error} (after run.finish: the result stands)")
    assert list(toy.published()) == [spec["id"]]


def test_a_complete_record_of_a_killed_worker_is_published_and_not_made_again(toy, monkeypatch):
    from refine_nb import _pool
    from refine_nb._attempts import unmark_alive, new_attempt
    from refine_nb.execute import _worker_spec
    plan = make_plan(toy.sweep("  - {seed: 0}"))
    spec = _worker_spec(plan, plan.todo[0])
    left_record(toy, spec, "record.json")
    folder = new_attempt(plan.runs, spec["id"])
    for path in (plan.runs / spec["id"]).iterdir(): path.rename(folder / path.name)
    (plan.runs / spec["id"]).rmdir()
    unmark_alive(folder)
    monkeypatch.setattr(_pool, "run_notebook", broken(AssertionError("it ran again")))
    assert _pool.execute_one(spec) == ("ok", "") and list(toy.published()) == [spec["id"]]


def test_clean_removes_no_published_record_and_no_checkpoint_unasked(toy):
    from refine_nb._attempts import unmark_alive, new_attempt
    runs = toy.root / "runs"
    for folder in ("a", ".failed/b", ".replaced/a-1"): (runs / folder).mkdir(parents=True)
    for path in ("a/run.json", ".failed/b/traceback.txt", ".replaced/a-1/run.json"): (runs / path).write_text("12345")
    old, half, alive = (new_attempt(runs, id) for id in ("a", "c", "a"))
    for folder in (old, half, alive): (folder / "metrics.jsonl").write_text("123")
    for folder in (old, half): unmark_alive(folder)
    code, out, _ = toy.run("clean", "--dry-run")
    assert code == 0 and "3 in all: 13 bytes would be removed" in out and (runs / ".failed" / "b").exists()
    assert toy.run("clean")[0] == 0
    assert [(runs / f).exists() for f in ("a/run.json", ".failed/b", ".replaced/a-1")] == [True, False, False]
    assert not old.exists() and half.exists() and alive.exists()
    assert toy.run("clean", "--unfinished")[0] == 0 and not half.exists() and alive.exists()
    unmark_alive(alive)


def calls_of(function, *args):
    "How many calls of Python functions it takes"
    counted = [0]

    def count(frame, event, arg): counted[0] += event == "call"

    sys.setprofile(count)
    try: function(*args)
    finally: sys.setprofile(None)
    return counted[0]


def test_a_plan_costs_in_proportion_to_its_runs(toy):
    from refine_nb.execute import _levels
    from refine_nb.sweep import plan_text
    plans = [make_plan(toy.sweep(f"  - {{seed: {list(range(n))}}}", f"s{n}")) for n in (100, 400)]
    for cost in (plan_text, lambda plan: list(_levels(plan)), lambda plan: make_plan(toy.root / f"experiments/sweeps/{plan.sweep.name}.yaml")):
        small, large = (calls_of(cost, plan) for plan in plans)
        assert large < 5 * small + 100


def test_a_row_keeps_the_name_it_was_recorded_under(toy):
    "Old ids, pages and files know them: a run that is executed again for its files takes the recorded id"
    toy.sweep("  - {seed: 0}", "warm")
    assert toy.run("sweep", "warm")[0] == 0
    for name in ("runs.csv", "curves.csv"):
        path = toy.root / "results" / "warm" / name
        path.write_text(path.read_text().replace(read_runs(path.parent)["id"][0], "0123456789abcdef"))
    shutil.rmtree(toy.root / "runs")
    sweep = toy.sweep("  - {seed: 5, warm_start: {sweep: warm, where: {seed: 0}}}")
    assert not make_plan(toy.root / "experiments/sweeps/warm.yaml").todo
    assert toy.run("sweep", sweep)[0] == 0
    assert read_runs(toy.root / "results" / "s")["warm_start"].tolist() == ["run:0123456789abcdef"]
    assert (toy.root / "runs" / "0123456789abcdef" / "run.json").exists() and len(read_runs(toy.root / "results" / "warm", every=True)) == 1


def test_an_unfinished_attempt_of_other_code_is_not_gone_on_with(toy):
    sweep = toy.sweep("  - {seed: 0, mode: error}")
    assert toy.run("sweep", sweep)[0] == 1
    write_notebook(toy.notebook, toy_cells(body=BODY.replace('if mode == "error": raise', 'if not done and mode == "error" and False: raise')))
    assert toy.run("sweep", sweep)[0] == 0
    assert complete(toy, 1)["resumed_from"].tolist() == [0]
    assert [p.name[:16] for p in (toy.root / "runs" / ".replaced").iterdir()] == list(read_runs(toy.root / "results" / "s")["id"])


def test_the_bar_says_why_it_stands_still(toy, capsys):
    from refine_nb.execute import _Progress
    bar = _Progress(make_plan(toy.sweep("  - {seed: 0}")))
    bar.at_work = lambda: {}["steps"]
    bar.thread.start()
    bar.thread.join(5)
    assert not bar.thread.is_alive() and "the bar stands still (KeyError" in capsys.readouterr().out


def test_what_ran_otherwise_is_not_gone_on_from(toy):
    "A record that is not what was asked: its checkpoints are kept aside with it"
    write_notebook(toy.notebook, toy_cells(body=BODY.replace('run.finish(', 'run.identity["params"]["seed"] = 9\nrun.unchanged = lambda: True\nrun.finish(')))
    code, out, _ = toy.run("sweep", toy.sweep("  - {seed: 3}"))
    assert code == 1 and "seed: asked 3, ran 9" in out and "no table" in out
    assert not toy.attempts() and next(toy.root.glob("runs/.failed/*/checkpoints/step.json")).read_text() == "4"


def test_no_table_without_a_row(toy):
    "Before the first result there is nothing to write"
    code, out, _ = toy.run("sweep", toy.sweep("  - {mode: error}"))
    assert code == 1 and not list(toy.root.glob("results/s/*.csv"))


@pytest.mark.parametrize("after, error", [
    ("seed = 5", "seed: asked 3, the notebook has 5"),                       # assigned after the parameters cell, before start_run
    (None, "id: asked"),                                                      # a notebook that writes its own record
])
def test_what_ran_is_what_was_asked_or_it_is_refused(toy, after, error):
    forged = BODY.replace('run = start_run("toy", globals())', after + '\nrun = start_run("toy", globals())') if after else '''
import json, os
from pathlib import Path
(Path(os.environ["REFINE_NB_REQUEST"]).parent / "record.json").write_text(json.dumps({"id": "0", "params": {}, "status": "ok", "as_saved": True, "error": None}))
'''
    write_notebook(toy.notebook, toy_cells(body=forged, report=""))
    code, out, _ = toy.run("sweep", toy.sweep("  - {seed: 3}"))
    kept = next(toy.root.glob("runs/.failed/*/traceback.txt")).read_text()
    assert code == 1 and not toy.published() and error in kept


def test_a_tag_lost_after_planning_is_caught_in_the_kernel(toy):
    "papermill runs the defaults under the requested label when the tag `parameters` is gone; the run refuses"
    from refine_nb._pool import execute_one
    from refine_nb.execute import _worker_spec
    plan = make_plan(toy.sweep("  - {seed: 3}"))
    spec = _worker_spec(plan, plan.todo[0])
    write_notebook(toy.notebook, [(PARAMETERS, []), (BODY, [])])
    os.environ["TOY_LOG"] = str(toy.log)
    outcome, text = execute_one(spec)
    assert outcome == "failed" and "0 cells carry the tag `parameters`" in text and not toy.published()
    with pytest.raises(ParameterError, match="exactly one must"): make_plan(toy.sweep("  - {seed: 3}"))


# --- runs that build on runs ---------------------------------------------------------------------------------------

def test_a_dependency_runs_first_is_shared_and_comes_back_alone(toy):
    toy.sweep("  - {seed: [0, 1]}", "base")
    sweep = toy.sweep("  - {seed: [10, 11], warm_start: {sweep: base, where: {seed: 1}}}")
    code, out, err = toy.run("sweep", sweep, "--workers", 1)
    assert code == 0, out + err
    base, = [i for i, r in toy.published().items() if r["params"]["seed"] == 1]
    tuned = {i for i, r in toy.published().items() if r["params"]["seed"] >= 10}
    assert toy.executions()[0] == base and len(toy.executions()) == 3 and len(tuned) == 2
    assert set(read_runs(toy.root / "results" / "s")["x"]) == {4 + 44, 4 + 48} and list(read_runs(toy.root / "results" / "base")["id"]) == [base]
    assert {r["params"]["warm_start"] for i, r in toy.published().items() if i in tuned} == {f"run:{base}"}
    more = toy.sweep("  - {seed: [10, 11, 12], warm_start: {sweep: base, where: {seed: 1}}}")
    assert len(make_plan(more).todo) == 1  # the run it builds on is there
    shutil.rmtree(toy.root / "runs" / base / "checkpoints")
    assert not make_plan(toy.sweep("  - {seed: [10, 11], warm_start: {sweep: base, where: {seed: 1}}}")).todo  # all rows stand, nobody needs it
    more = toy.sweep("  - {seed: [10, 11, 12], warm_start: {sweep: base, where: {seed: 1}}}")
    assert make_plan(more).todo[0] == base
    code, out, err = toy.run("sweep", more, "--workers", 1)
    assert code == 0 and len(toy.executions()) == 5 and toy.executions()[3] == base, out + err
    assert len(read_runs(toy.root / "results" / "s")) == 3 and len(read_runs(toy.root / "results" / "base")) == 1


def test_a_dependency_shares_the_random_seed(toy):
    toy.sweep("  - {seed: [0, 1], steps: [2, 3]}", "base")
    plan = make_plan(toy.sweep("  - {seed: [0, 1], warm_start: {sweep: base, where: {steps: 3}}}"))
    pairs = {(identity["params"]["seed"], plan.others[identity["params"]["warm_start"].removeprefix("run:")][1]["params"]["seed"]) for identity in plan.identities.values()}
    assert pairs == {(0, 0), (1, 1)} and len(plan.todo) == 4
    fixed = make_plan(toy.sweep("  - {seed: [0, 1], warm_start: {sweep: base, where: {steps: 3, seed: 1}}}"))
    assert len(fixed.others) == 1 and len(fixed.todo) == 3
    alone, = make_plan(toy.sweep("  - {warm_start: {sweep: base, where: {steps: 3}}}")).others.values()
    assert alone[1]["params"]["seed"] == 0  # the notebook's own


def test_a_dependent_of_a_diverged_run_is_blocked(toy):
    toy.sweep("  - {mode: diverges}", "base")
    code, out, _ = toy.run("sweep", toy.sweep("  - {warm_start: {sweep: base, where: {mode: diverges}}}"))
    assert code == 1 and "blocked" in out and len(toy.executions()) == 1


def test_a_sweep_is_known_with_its_folder_and_ending_or_without(toy, monkeypatch):
    toy.sweep("  - {seed: 1}", "walk")
    monkeypatch.chdir(toy.root)
    assert {read_sweep(name).name for name in ("walk", "walk.yaml", "experiments/sweeps/walk", "experiments/sweeps/walk.yaml")} == {"walk"}
    (toy.root / "walk").mkdir()  # a folder of that name does not matter
    assert read_sweep("walk").name == "walk"
    for other in ("wlk", "walk.v2", "experiments/sweeps/walk.v2", "walk.yml"):
        with pytest.raises(SweepError, match="did you mean 'walk'"): read_sweep(other)
    with pytest.raises(SweepError, match="no sweep 'walk'"): read_sweep("experiments/claims/walk")


# --- refused before anything runs ------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, says", [
    ("  - {sede: 1}", "did you mean 'seed'"),
    ("  - {seed: one}", "declares int"),
    ("  - {seed: [0, 1.5]}", "declares int"),
    ("  - {pause: 1e-3, seed: '1'}", "seed = '1'"),
    ("  - {seed: []}", "empty list"),
    ("  - {seed: 1, seed: 2}", "stands twice"),
    ("  - {warm_start: {sweep: bse, where: {}}}", "did you mean 'base'"),
    ("  - {warm_start: {sweep: base, where: {sed: 0}}}", "did you mean 'seed'"),
    ("  - {warm_start: {sweep: base, where: {mode: fine}}}", "2 runs of 'base'"),
    ("  - {warm_start: {sweep: s, where: {steps: 4}}}", "builds on itself"),
    ("  - {warm_start: {swep: base}}", "write {sweep: NAME"),
])
def test_a_mistake_in_the_file_is_refused(toy, text, says):
    toy.sweep("  - {seed: [0, 1], steps: [4, 5]}", "base")
    with pytest.raises((SweepError, ParameterError), match=says.replace("{", r"\{")): make_plan(toy.sweep(text))
    assert not (toy.root / "runs").exists() and not (toy.root / "results").exists()


def test_numbers_with_an_exponent_are_numbers(toy):
    assert read_sweep(toy.sweep("  - {pause: [1e-3, 2E4, -1e+2, 1.5e2]}")).entries == [{"pause": p} for p in (1e-3, 2e4, -100.0, 150.0)]


@pytest.mark.parametrize("parameters, says", [
    ("seed = 0\nlr = 2 * 3", "NAME = literal"),
    ("seed = 0\nsteps = None", "steps: int = None"),
    ("Seed = 0", "lower-case"),
    ("preset = 'cpu'\nPRESETS = {'cpu': {'sed': 1}}", "no parameter 'sed'"),
    ("preset = 'cpu'\nseed = 0\nPRESETS = {'cpu': {'seed': 1}}", "seed: int = None"),
    ("preset = 'gpu'\nPRESETS = {'cpu': {}}", "no preset 'gpu'"),
])
def test_a_parameters_cell_that_leaves_anything_open_is_refused(toy, parameters, says):
    write_notebook(toy.notebook, toy_cells(parameters))
    with pytest.raises((SweepError, ParameterError), match=says): make_plan(toy.sweep("  - {}"))


@pytest.mark.parametrize("parameters, entry, says", [
    ('seed = 0\nmethod = "gpt"  # or "counts"', "method: gtp", "method: no value 'gtp'; did you mean 'gpt'"),
    ('seed = 0\nmethod = "gpt"  # "counts": of characters; "gpt"', "method: [counts, count]", "no value 'count'"),
    ('seed = 0\nmethod = "gpt"  # a name', "method: gtp", None),
    ('seed = 0\n# or "counts"\nmethod = "gpt"', "method: gtp", None),
    ('seed = 0\nmethod = "gpt"; note = ""  # or "counts"', "note: gtp", None),
])
def test_a_text_that_the_comment_does_not_list_is_refused(toy, parameters, entry, says):
    write_notebook(toy.notebook, toy_cells(parameters))
    sweep = toy.sweep(f"  - {{{entry}}}")
    with pytest.raises(SweepError, match=says) if says else nullcontext(): make_plan(sweep)


def test_papermill_by_hand_refuses_a_misspelt_parameter(toy):
    "papermill itself only warns, and would run with the default"
    done = subprocess.run([sys.executable, "-m", "papermill", toy.notebook, toy.root / "out.ipynb", "-k", "python3", "-p", "stpes", "5"], cwd=toy.root, env=toy.env, capture_output=True, text=True)
    assert done.returncode == 1 and "no parameter 'stpes'; did you mean 'steps'?" in done.stderr and not toy.executions()
    done = subprocess.run([sys.executable, "-m", "papermill", toy.notebook, toy.root / "out.ipynb", "-k", "python3", "-p", "steps", "2"], cwd=toy.root, env=toy.env, capture_output=True, text=True)
    assert done.returncode == 0 and len(toy.executions()) == 1


def test_the_command_line_is_friendly(toy):
    code, out, err = toy.run("sweep", toy.sweep("  - {sede: 1}"))
    assert code == 2 and "did you mean 'seed'" in err and "Traceback" not in err
    code, out, err = toy.run("sweep", toy.root / "experiments" / "sweeps" / "z.yaml")
    assert code == 2 and "no sweep 'z'" in err
    toy.sweep("  - {seed: 1}", "named")
    code, out, err = toy.run("sweep", "named", "--dry-run")
    assert code == 0 and "1 to run" in out
    code, out, err = toy.run("sweep", "namd")
    assert code == 2 and "did you mean 'named'" in err


def test_a_corpus_is_named_and_there(toy, tmp_path_factory, monkeypatch):
    from refine_nb import data
    load = data.load_corpus
    monkeypatch.setattr(data, "load_corpus", lambda name: load("pydocs" if name == "auto" else name))  # as where there is no network
    write_notebook(toy.notebook, toy_cells(PARAMETERS + 'corpus = "auto"'))
    with pytest.raises(SweepError, match="names its corpus"): make_plan(toy.sweep("  - {}"))
    with pytest.raises(SweepError, match="cannot be read"): make_plan(toy.sweep("  - {corpus: missing.txt}"))
    (toy.root / "mine.txt").write_text("some words " * 200)
    identity, = make_plan(toy.sweep("  - {corpus: mine.txt}")).identities.values()
    assert identity["corpus"]["name"].startswith("file:mine-") and identity["params"]["corpus"] == "mine.txt"
    elsewhere, = make_plan(toy.sweep("  - {}"), results=tmp_path_factory.mktemp("results")).identities.values()
    assert elsewhere["params"]["corpus"] == elsewhere["corpus"]["name"] == "pydocs"


@needs_git
def test_cards_of_a_sweep_that_is_built_on_must_be_committed_too(toy):
    toy.sweep("  - {seed: [0, 1]}", "base")
    sweep = toy.sweep("  - {seed: 9, warm_start: {sweep: base, where: {seed: 1}}}")
    commit(toy.root)
    assert len(make_plan(sweep).todo) == 2
    (toy.root / "experiments" / "claims").mkdir()
    (toy.root / "experiments" / "claims" / "c.yaml").write_text("id: c\nclaim: words\nsweep: base\nmetric: x\nrule: {test: exact, at_least: 1, n: 1}\n")
    with pytest.raises(CardError, match="card c differs"): make_plan(sweep)


@needs_git
def test_cards_must_be_committed_before_their_sweep(toy, tmp_path_factory):
    card = toy.root / "experiments" / "claims" / "c.yaml"
    card.parent.mkdir()
    card.write_text("id: c\nclaim: words\nsweep: s\nmetric: x\nrule: {test: exact, at_least: 1, n: 1}\n")
    sweep = toy.sweep("  - {seed: 0}")
    with pytest.raises(CardError, match="commit first"): make_plan(sweep)
    commit(toy.root)
    assert len(make_plan(sweep).todo) == 1
    card.write_text(card.read_text().replace("words", "other words"))
    assert len(make_plan(sweep).todo) == 1
    card.write_text(card.read_text().replace("at_least: 1", "at_least: 2"))
    with pytest.raises(CardError, match="card c differs"): make_plan(sweep)
    assert len(make_plan(sweep, results=tmp_path_factory.mktemp("results")).todo) == 1
    card.unlink()
    with pytest.raises(CardError, match="card c differs"): make_plan(sweep)
    card.write_text("claim: without a name\n")
    with pytest.raises(CardError, match="card c differs"): make_plan(sweep)  # without a name it is no card of this sweep


# --- the table -----------------------------------------------------------------------------------------------------

def fake(runs, seed, **metrics):
    "A published run, made by hand"
    record = {"id": f"{seed:016x}", "key": f"k{seed}", "experiment": "toy", "status": "ok", "params": {"model": "m", "seed": seed}, "metrics": metrics, "corpus": None, "cards": {}, "cpu_seconds": 10.0 + seed, "started": "2030"}
    (runs / record["id"]).mkdir(parents=True)
    (runs / record["id"] / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "val_loss": null, "non_finite": ["val_loss"]}\n')
    return record


def test_the_table_does_not_depend_on_the_order_of_ending(tmp_path):
    records = [fake(tmp_path / "runs", 10, loss=1.0), fake(tmp_path / "runs", 2, share=0.5), fake(tmp_path / "runs", 3, share=0.4, loss=1e-7)]
    for name, order in (("a", records), ("b", records[::-1])):
        for r in order: merge_records(tmp_path / name, [r], tmp_path / "runs", [])
    assert [(tmp_path / "a" / f).read_bytes() for f in ("runs.csv", "curves.csv")] == [(tmp_path / "b" / f).read_bytes() for f in ("runs.csv", "curves.csv")]
    table = read_runs(tmp_path / "a")
    assert list(table["seed"]) == [2, 3, 10] and table["loss"].tolist()[1:] == [1e-7, 1.0] and table["id"].tolist()[0] == f"{2:016x}"
    assert list(read_curves(tmp_path / "a")["step"]) == [2, 2, 2]


def test_a_lost_table_beside_the_rows_is_not_written_anew(tmp_path):
    folder, runs = tmp_path / "s", tmp_path / "runs"
    said = {"id": "a", "key": "k", "experiment": "e", "status": "ok", "params": {"seed": 0}, "metrics": {"x": 1.0},
            "corpus": None, "cards": {"c": "1"}, "started": "2030-01-01"}
    (runs / "a").mkdir(parents=True)
    (runs / "a" / "metrics.jsonl").write_text('{"step": 1, "val_x": 2.0}\n')
    merge_records(folder, [said], runs, ["c"])
    text = (folder / "curves.csv").read_text()
    (folder / "curves.csv").unlink()
    with pytest.raises(TableError, match="curves.csv is gone"): merge_records(folder, [dict(said, id="b", key="l")], runs, ["c"])
    assert not (folder / "curves.csv").exists() and len(text.splitlines()) == 2


def test_a_kill_inside_merge_leaves_windows_and_row_together(tmp_path, monkeypatch):
    "Under --refresh: the values behind an interval are those of the row, on either side of the moment when it is written"
    from refine_nb import tables
    folder, runs = tmp_path / "s", tmp_path / "runs"
    (runs / "a").mkdir(parents=True)
    said = {"id": "a", "key": "k", "experiment": "e", "status": "ok", "params": {"seed": 0}, "metrics": {"x": 1.0},
            "corpus": None, "cards": {}}
    write_windows(runs / "a" / "windows.json.gz", {"x": [1.0]})
    merge_records(folder, [dict(said, started="2030")], runs, [])
    write_windows(runs / "a" / "windows.json.gz", {"x": [2.0]})
    new = dict(said, started="2031", metrics={"x": 2.0})
    for name in ("_write", "_settle_windows"):
        monkeypatch.setattr(tables, name, broken(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt): merge_records(folder, [new], runs, [], ["a"])
        monkeypatch.undo()
        assert read_windows(folder, "a")["x"] == [read_runs(folder)["x"][0]] == [1.0]
    calls, settle = [], tables._settle_windows
    def second_time(*args):
        calls.append(args)
        if len(calls) == 2: raise KeyboardInterrupt
        settle(*args)
    monkeypatch.setattr(tables, "_settle_windows", second_time)
    with pytest.raises(KeyboardInterrupt): merge_records(folder, [new], runs, [], ["a"])
    monkeypatch.undo()
    assert read_windows(folder, "a")["x"] == [read_runs(folder)["x"][0]] == [2.0]
    merge_records(folder, [], runs, [])
    assert [p.name for p in (folder / "windows").iterdir()] == ["a.json.gz"] and read_windows(folder, "a")["x"] == [2.0]


def test_merging_keeps_what_stands(tmp_path):
    first = fake(tmp_path / "runs", 1, loss=1.0)
    merge_records(tmp_path / "t", [first], tmp_path / "runs", [])
    later = first | {"metrics": {"loss": 9.0}, "started": "2031"}
    def loss(*again):
        merge_records(tmp_path / "t", [later], tmp_path / "runs", [], again)
        row, = read_table(tmp_path / "t" / "runs.csv")
        return row["loss"]
    assert loss() == "1.0" and loss("another") == "1.0" and loss(first["id"]) == "9.0"
    later |= {"metrics": {"loss": 5.0}, "started": "2030"}
    assert loss(first["id"]) == "9.0"  # what was recorded before does not come back


def test_a_row_tells_its_cards_and_the_values_behind_its_interval(tmp_path):
    record = fake(tmp_path / "runs", 1, loss=1.0) | {"cards": {"c": "12", "of another sweep": "34"}}
    values = {"loss": [0.1 + 0.2, 1e-300, 1 / 3]}
    write_windows(tmp_path / "runs" / record["id"] / "windows.json.gz", values)
    merge_records(tmp_path / "t", [record], tmp_path / "runs", ["c"])
    row, = read_table(tmp_path / "t" / "runs.csv")
    assert len(row["cards"]) == 16 and json.loads(read_runs(tmp_path / "t")["cards"][0]) == {"c": "12"}
    assert read_windows(tmp_path / "t", record["id"]) == values
    with pytest.raises(FileNotFoundError, match="kept no values"): read_windows(tmp_path / "t", "0")


def test_machines_share_a_sweep_and_join_their_tables(tmp_path):
    here, there = (fake(tmp_path / "runs", s, loss=float(s)) for s in (1, 2))
    both = fake(tmp_path / "runs", 3, loss=3.0)
    write_windows(tmp_path / "runs" / there["id"] / "windows.json.gz", {"loss": [1.0]})
    merge_records(tmp_path / "a", [here, both], tmp_path / "runs", [])
    merge_records(tmp_path / "b", [there, both | {"metrics": {"loss": 4.0}, "started": "2031", "cards": {"c": "1"}}], tmp_path / "runs", ["c"])
    assert join_tables(tmp_path / "a", [tmp_path / "b"]) == (2, 3)
    table = read_runs(tmp_path / "a")
    assert table["loss"].tolist() == [1.0, 2.0, 4.0] and json.loads(table["cards"][2]) == {"c": "1"}
    assert read_windows(tmp_path / "a", there["id"]) == {"loss": [1.0]} and len(read_curves(tmp_path / "a")) == 3
    with pytest.raises(TableError, match="holds no runs.csv"): join_tables(tmp_path / "a", [tmp_path / "c"])
    merge_records(tmp_path / "d", [both | {"id": "d", "key": "d", "experiment": "other"}], tmp_path / "runs", [])
    with pytest.raises(TableError, match="tables of one sweep"): join_tables(tmp_path / "a", [tmp_path / "d"])


def test_certificates_and_reruns_are_joined_the_later_one_stays(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    run = fake(tmp_path / "runs", 1, loss=1.0)
    for folder in folders: merge_records(folder, [run], tmp_path / "runs", [])
    certificate = {"arm": "x", "date": "2026-01-01", "outcome": "equal"}
    write_table(folders[0] / "verified.csv", [certificate, certificate | {"arm": "y"}], list(certificate))
    write_table(folders[1] / "verified.csv", [certificate | {"date": "2026-01-02", "outcome": "changed"}], list(certificate))
    again = {"id": "1", "metric": "loss", "here": "1.0", "here_on": "a processor", "started": "2026"}
    write_table(folders[1] / "reruns.csv", [again], list(again))
    join_tables(folders[0], [folders[1]])
    assert {r["arm"]: r["outcome"] for r in read_table(folders[0] / "verified.csv")} == {"x": "changed", "y": "equal"}
    assert read_table(folders[0] / "reruns.csv") == [again]


@needs_git
def test_the_side_of_a_conflict_that_keeps_its_row_keeps_its_windows(tmp_path):
    folder = tmp_path / "results" / "t"
    def record(loss, started):
        "One question, recorded on either side with other numbers"
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        run = fake(tmp_path / "runs", 1, loss=loss) | {"started": started}
        write_windows(tmp_path / "runs" / run["id"] / "windows.json.gz", {"loss": [loss]})
        shutil.rmtree(folder, ignore_errors=True)
        merge_records(folder, [run], tmp_path / "runs", [])
        commit(tmp_path)
        return run["id"]
    (tmp_path / "a").touch()
    commit(tmp_path)
    git(tmp_path, "checkout", "-qb", "other")
    id = record(2.0, "2031")
    git(tmp_path, "checkout", "-q", "-")
    record(1.0, "2030")
    (folder / "windows" / "gone.json.gz").write_bytes(b"")
    assert "CONFLICT" in git(tmp_path, "merge", "other", check=False) and read_windows(folder, id) == {"loss": [1.0]}
    join_tables(folder)
    assert read_runs(folder)["loss"].tolist() == [2.0] and read_windows(folder, id) == {"loss": [2.0]}
    assert [p.name for p in (folder / "windows").iterdir()] == [f"{id}.json.gz"]


@needs_git
def test_windows_that_one_side_alone_recorded_again_are_kept(tmp_path):
    "git merges their file by itself, while the tables are in conflict"
    folder = tmp_path / "results" / "t"
    def record(n, loss, started):
        run = fake(tmp_path / "runs", n, loss=loss) | {"started": started}
        write_windows(tmp_path / "runs" / run["id"] / "windows.json.gz", {"loss": [loss]})
        merge_records(folder, [run], tmp_path / "runs", [])
        commit(tmp_path)
        return run["id"]
    id = record(1, 1.0, "2030")
    git(tmp_path, "checkout", "-qb", "other")
    for known in (tmp_path / "runs", folder): shutil.rmtree(known)
    assert record(1, 2.0, "2031") == id
    git(tmp_path, "checkout", "-q", "-")
    record(2, 3.0, "2030")
    assert "CONFLICT" in git(tmp_path, "merge", "other", check=False)
    join_tables(folder)
    assert sorted(read_runs(folder)["loss"]) == [2.0, 3.0] and read_windows(folder, id) == {"loss": [2.0]}


@needs_git
@pytest.mark.parametrize("attributes", ["", "results/*/executed.json -diff -merge"])
def test_what_arms_execute_is_joined_from_both_sides(tmp_path, attributes):
    "Lines of two sides would make another whole: numbers in the file mean places"
    folder = tmp_path / "results" / "t"
    (tmp_path / ".gitattributes").write_text(attributes + "\n")
    def record(n, arm, names):
        merge_records(folder, [fake(tmp_path / "runs", n, loss=1.0)], tmp_path / "runs", [])
        line = dict(arm=arm, date="2030", outcome="equal", code="1", recorded="1")
        write_table(folder / "verified.csv", [line], list(line))
        write_executed(folder, {arm: frozenset(names)})
        commit(tmp_path)
    commit(tmp_path)
    git(tmp_path, "checkout", "-qb", "other")
    record(1, "a", {"m.a", "m.c", "m.d"})
    git(tmp_path, "checkout", "-q", "-")
    record(2, "b", {"m.b", "m.d"})
    assert "CONFLICT" in git(tmp_path, "merge", "other", check=False)
    join_tables(folder)
    executed = parse_executed(json.loads((folder / "executed.json").read_text()))
    assert executed == {"a": {"m.a", "m.c", "m.d"}, "b": {"m.b", "m.d"}} and len(read_runs(folder)) == 2


CARD = "id: c\nclaim: x\nsweep: s\nmetric: x\narm: {seed: 0}\nrule: {test: exact, n: 1, at_least: 0}\n"


@needs_git
def test_a_table_in_conflict_is_refused_by_name_and_joined(toy):
    sweep = toy.sweep("  - {seed: [0, 1, 2, 3]}")
    for folder in ("nbs", "experiments/claims"): (toy.root / folder).mkdir()
    (toy.root / "experiments" / "claims" / "c.yaml").write_text(CARD)
    commit(toy.root)
    def record(*seeds):
        for seed in seeds: assert toy.run("sweep", sweep, "--where", f"seed={seed}")[0] == 0
        commit(toy.root)
    record(1)
    git(toy.root, "checkout", "-qb", "other")
    record(0, 3)
    git(toy.root, "checkout", "-q", "-")
    record(2)
    assert "CONFLICT" in git(toy.root, "merge", "other", check=False)
    for command in (("sweep", sweep), ("sweep", sweep, "--dry-run"), ("claims",)):
        code, _, err = toy.run(*command)
        assert code == 2 and "results/s/runs.csv holds git's conflict markers (line " in err and "refine-nb merge" in err and "Traceback" not in err
    code, out, err = toy.run("merge", "results/s")
    assert code == 0 and "4 rows" in out, err
    complete(toy, 4)


def test_the_estimate_comes_from_like_runs(toy):
    from refine_nb.sweep import plan_text
    sweep = toy.sweep("  - {seed: [0, 1, 2]}\n  - {seed: 0, steps: 9}")
    plan = make_plan(sweep)
    done = [h | {"status": "ok", "metrics": {}, "cards": {}, "cpu_seconds": c, "started": "2030"} for h, c in zip(plan.identities.values(), (40.0, 60.0))]
    for d in done: (toy.root / "runs" / d["id"]).mkdir(parents=True)
    merge_records(plan.results / "s", done, toy.root / "runs", [])
    text = plan_text(make_plan(sweep))
    assert "4 runs, 2 done, 2 to run, about 50 CPU-s (1 of unknown cost)" in text and text.count("about 50 CPU-s") == 2
    code, out, _ = toy.run("sweep", sweep, "--dry-run")
    assert code == 0 and text in out and not toy.executions()


def test_a_slice_runs_what_was_asked_and_leaves_the_rest(toy):
    sweep = toy.sweep("  - {seed: [0, 1], pause: [0.0, 0.01]}")
    assert toy.run("sweep", sweep, "--where", "pause=0.01", "--where", "seed=1")[0] == 0
    table = read_runs(toy.root / "results" / "s")
    assert table[["seed", "pause"]].values.tolist() == [[1, 0.01]]
    assert toy.run("sweep", sweep, "--where", "pause=0.01")[0] == 0 and len(read_runs(toy.root / "results" / "s")) == 2
    assert toy.run("sweep", sweep)[0] == 0
    complete(toy, 4)


def test_where_reads_values_as_the_parameters_cell_declares_them(toy):
    "Not as YAML does, to which 1e-3 is a word and no is a truth value"
    write_notebook(toy.notebook, toy_cells(PARAMETERS + "lr = 0.01\nword = 'a'\nflag = False\n"))
    sweep = toy.sweep("  - {lr: [1e-3, 3e-4], word: ['no', '7'], flag: [true, false]}")
    for where in ({"lr": "1e-3"}, {"lr": "0.001"}, {"lr": 0.001}, {"word": "no"}, {"word": "7"}, {"flag": "true"}, {"flag": "False"}):
        assert len(make_plan(sweep, where=where).todo) == 4, where
    for where in ({"lr": "fast"}, {"flag": "7"}, {"seed": "0.5"}):
        with pytest.raises(SweepError, match="is of type"): make_plan(sweep, where=where)


@pytest.mark.parametrize("where, message", [("step=3", "did you mean 'steps'"), ("steps=5", "there is steps=2, steps=3"), ("steps", "write name=value")])
def test_a_slice_of_nothing_is_refused(toy, where, message):
    code, _, said = toy.run("sweep", toy.sweep("  - {steps: [2, 3]}"), "--where", where)
    assert code == 2 and message in said and not toy.executions()


@pytest.mark.parametrize("error, outcome", [(RuntimeError("Kernel died before replying to kernel_info"), "died"), (RuntimeError("Kernel didn't respond in 60 seconds"), "died"), (RuntimeError("a mistake of the runner's"), "failed"), (KeyError("Kernel of truth"), "failed")])
def test_a_kernel_that_does_not_start_is_no_mistake_of_the_run(tmp_path, monkeypatch, error, outcome):
    "Its run is tried again, as one whose kernel died in the middle"
    from refine_nb import _pool
    def break_down(spec, folder): raise error
    monkeypatch.setattr(_pool, "run_notebook", break_down)
    assert _pool.execute_one(dict(id="0123", runs=str(tmp_path)))[0] == outcome


def test_a_git_that_refuses_is_heard(toy, tmp_path):
    "A repository of another owner is no missing repository: git's own sentence is the refusal"
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho \"fatal: detected dubious ownership in repository at 'x'\" >&2\nexit 128\n")
    fake.chmod(0o755)
    toy.env |= {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    code, _, err = toy.run("sweep", toy.sweep("  - {seed: 0}"))
    assert code == 2 and "fatal: detected dubious ownership in repository at 'x'" in err and not toy.executions()
