"""A throw-away project whose one experiment counts steps, checkpoints every one, and misbehaves when asked to."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

PARAMETERS = '''
mode = "fine"          # fine | error | diverges | kills_worker
seed = 0
steps = 4
pause = 0.0            # seconds per step
warm_start: str = None
'''
BODY = '''
import json, os, signal, time
from refine_nb.records import start_run
run = start_run("toy", globals())
with open(os.environ["TOY_LOG"], "a") as f: f.write(run.head["id"] + "\\n")
saved = run.checkpoint_dir / "step.json"
done = json.loads(saved.read_text()) if saved.exists() else 0
if done: run.on_resume(done)
for step in range(done + 1, steps + 1):
    time.sleep(pause)
    run({"step": step, "val_x": step * (seed + 1), "pid": os.getpid()})
    saved.with_suffix(".part").write_text(str(step))
    os.replace(saved.with_suffix(".part"), saved)
if mode == "error": raise KeyError("a mistake of the user's")
if mode == "diverges": raise FloatingPointError("loss is nan at step 4")
if mode == "kills_worker":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)  # a kernel ends itself when its worker is gone
start = json.loads((run.dependency("warm_start") / "checkpoints" / "step.json").read_text()) if warm_start else 0
run.finish({"x": start + steps * (seed + 1), "resumed_from": done}, deterministic=True)
'''
REPORT = "print(run)"


def write_notebook(path, cells):
    "A notebook of code cells, each (source, tags)"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"cell_type": "code", "id": f"cell{i}", "metadata": {"tags": tags}, "source": s.strip("\n"), "outputs": [], "execution_count": None} for i, (s, tags) in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}))
    return path


def toy_cells(parameters=PARAMETERS, body=BODY, report=REPORT):
    "The cells of the toy experiment"
    return [(parameters, ["parameters"]), (body, []), (report, ["report"])]


class Toy:
    "A project in a folder, and ways to drive it"

    def __init__(self, root: Path):
        self.root, self.log = root, root / "executions.log"
        self.notebook = write_notebook(root / "experiments" / "toy.ipynb", toy_cells())
        self.env = os.environ | {"TOY_LOG": str(self.log)}

    def sweep(self, text: str, name: str = "s") -> Path:
        "Write a sweep file"
        path = self.root / "experiments" / "sweeps" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"notebook: toy\nruns:\n{text}\n")
        return path

    def start(self, *args, cwd=None) -> subprocess.Popen:
        "Start the command line, in a process group of its own"
        return subprocess.Popen([sys.executable, "-m", "refine_nb._cli", *map(str, args)], cwd=cwd or self.root, env=self.env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, *args, cwd=None) -> tuple[int, str, str]:
        "Run the command line to its end: (exit code, stdout, stderr)"
        process = self.start(*args, cwd=cwd)
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err

    def executions(self) -> list[str]:
        "Run ids in the order in which notebooks were started"
        return self.log.read_text().split() if self.log.exists() else []

    def published(self) -> dict[str, dict]:
        "id → record"
        return {p.parent.name: json.loads(p.read_text()) for p in self.root.glob("runs/*/run.json")}

    def attempts(self) -> dict[Path, list[dict]]:
        "Attempt folder → rows so far"
        return {p.parent: [json.loads(line) for line in p.read_text().split("\n")[:-1]] for p in self.root.glob("runs/.attempts/*/*/metrics.jsonl")}

    def wait_for(self, condition, seconds=40):
        "Wait until something is so; returns it"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try: found = condition()
            except (FileNotFoundError, json.JSONDecodeError): found = None
            if found: return found
            time.sleep(0.02)
        raise AssertionError("it did not happen in time")

    def at_work(self, steps: int = 2) -> tuple[Path, dict]:
        "(folder, last row) of an attempt that has got so far"
        return self.wait_for(lambda: next(((f, rows[-1]) for f, rows in self.attempts().items() if len(rows) >= steps and (f / "checkpoints" / "step.json").exists()), None))


def nap(spec: dict) -> tuple[str, str]:
    "A piece of work for an engine: sleeps, and says which process did it"
    time.sleep(spec["seconds"])
    return "ok", str(os.getpid())


def worker_of(attempt: Path) -> int:
    "Process id of the worker that made an attempt"
    return int(attempt.name.rsplit("-", 2)[1])


def gone(pid: int) -> bool:
    "Whether a process has ended (a zombie has)"
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError: return True


def kill(pid: int) -> None:
    "kill -9"
    os.kill(pid, signal.SIGKILL)
