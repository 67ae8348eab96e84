"""Everything `make test` does: python tools/check.py [sync] [notebooks] [tests] [experiments] [rows] [pages]; --changed [COMMIT]"""
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from xml.etree import ElementTree

import reach
import yaml
from smoke import smoke_sweep

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # of the environment that runs this script, so that its tools are the ones called
SERVER = ROOT / "tools/warm.py"
SECONDS = ROOT / "build/seconds"   # of CPU that each notebook took, written as it passes
WORKERS = max(2, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
BUDGET, AVERAGE = 25, 10           # CPU seconds of one notebook, and of all on average


WAY_OUT = "nbdev-export && nbdev-clean && nbdev-clean --fname experiments"


@dataclass
class Job:
    "A piece of a step that runs beside others"
    step: str                  # the step it belongs to
    name: str                  # what of it
    seconds: float             # about what it takes; the longest start first
    call: Callable[[], bool]   # whether it went well


def call(*command, cwd: Path = ROOT, log: Path | None = None) -> bool:
    "Run one command, its output passing through or into a file; True if it ended well"
    name, *rest = map(str, command)
    if log is None: return subprocess.run([BIN / name, *rest], cwd=cwd, stdin=subprocess.DEVNULL).returncode == 0
    with open(log, "wb") as file:
        return subprocess.run([BIN / name, *rest], cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode == 0


def content(file: Path) -> object:
    "A file for comparison: of a notebook what it holds, without what JupyterLab writes into it on opening"
    if file.suffix != ".ipynb": return file.read_bytes()
    notebook = json.loads(file.read_text(encoding="utf-8"))
    notebook["metadata"].pop("language_info", None)
    notebook["metadata"].get("kernelspec", {}).pop("display_name", None)
    return notebook


def contents(folder: Path) -> dict[str, object]:
    "Every notebook and module below a folder, by its path"
    files = [f for f in folder.rglob("*") if f.suffix in (".ipynb", ".py")]
    return {f.relative_to(folder).as_posix(): content(f) for f in files}


def sync() -> tuple[bool, str]:
    "Exporting and cleaning a copy of the repository changes none of its notebooks and modules"
    with tempfile.TemporaryDirectory() as tmp:
        for folder in ("nbs", "refine_nb", "experiments"):
            shutil.copytree(ROOT / folder, Path(tmp, folder), ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        shutil.copy(ROOT / "pyproject.toml", tmp)
        before = contents(Path(tmp))
        ok = all([call("nbdev-export", cwd=tmp), call("nbdev-clean", cwd=tmp), call("nbdev-clean", "--fname", "experiments", cwd=tmp)])
        after = contents(Path(tmp))
    changed = sorted(f for f in before | after if before.get(f) != after.get(f))
    for f in changed: print(f"  {f} is not what nbdev-export and nbdev-clean make of the notebooks")
    if changed: print(f"  the way out: {WAY_OUT}; then look at the difference")
    return ok and not changed, f"{len(changed)} files differ"


@contextmanager
def warm() -> Iterator[None]:
    "Kernels and notebooks are forks of a server that has imported what they need, where forks are safe"
    if sys.platform != "linux": return (yield)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFINE_NB_WARM"] = socket = str(Path(folder, "socket"))
        spec = {"argv": [sys.executable, "-I", "-S", str(SERVER), "kernel", socket, "{connection_file}"],
                "display_name": "Python 3", "language": "python"}
        kernels = Path(folder, "kernels/python3")
        kernels.mkdir(parents=True)
        (kernels / "kernel.json").write_text(json.dumps(spec))
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("JUPYTER_PATH")])])
        server = subprocess.Popen([sys.executable, SERVER, "serve", socket], stdin=subprocess.PIPE, start_new_session=True)
        try:
            while not Path(socket).exists() and server.poll() is None: time.sleep(0.05)
            yield
        finally: server.communicate()


@contextmanager
def cold() -> Iterator[None]:
    "Kernels start as they do for a user"
    kept = {name: os.environ.pop(name) for name in ("REFINE_NB_WARM", "JUPYTER_PATH") if name in os.environ}
    try: yield
    finally: os.environ.update(kept)


def forked(what: str, *args, log: Path | None = None) -> bool:
    "A notebook or a refine-nb command, in a fork of the server where there is one"
    if "REFINE_NB_WARM" in os.environ: return call("python", "-I", "-S", SERVER, what, os.environ["REFINE_NB_WARM"], *args, log=log)
    return call("nbdev-test" if what == "notebook" else "refine-nb", *args, log=log)


def job(step: str, name: str, seconds: float, what: str, *args) -> Job:
    "A job in a process of its own, with a log in build/logs that is shown if it fails"
    def run() -> bool:
        log = ROOT / f"build/logs/{step}-{name}"
        passed = forked(what, *args, log=log)
        if not passed: print(f"--- {step} {name}\n{log.read_text(errors='replace')}", flush=True)
        return passed
    return Job(step, name, seconds, run)


def known_seconds(notebook: Path) -> float:
    "CPU seconds of a notebook, as last measured here"
    file = SECONDS / notebook.stem
    return float(file.read_text()) if file.exists() else AVERAGE


def notebook_jobs(found: list[Path] | None = None) -> list[Job]:
    "Every cell of nbs/ runs, assertions included"
    return [job("notebooks", f.stem, known_seconds(f), "notebook", f) for f in found or sorted((ROOT / "nbs").glob("*.ipynb"))]


def experiment_jobs() -> list[Job]:
    "Every experiment notebook in its smoke preset, through the sweep runner, into build/smoke"
    folder, jobs = ROOT / "build/smoke", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in sorted((ROOT / "experiments").glob("*.ipynb")):
        sweep, file = smoke_sweep(ROOT, notebook), folder / f"{notebook.stem}.yaml"
        file.write_text(yaml.safe_dump(sweep))
        command = ["sweep", file, "--results", folder / "results", "--runs", folder / "runs", "--workers", 1]
        jobs.append(job("experiments", notebook.stem, 3 * len(sweep["runs"]), "command", *command))
    return jobs


def sync_jobs() -> list[Job]:
    "Exporting and cleaning a copy of the repository changes none of its notebooks and modules"
    return [Job("sync", "copy", 15, lambda: sync()[0])]


def row_jobs() -> list[Job]:
    "No recorded row under a decided claim card is known to come out different today"
    return [job("rows", "cards", 15, "command", "verify", "--check")]


def page_jobs() -> list[Job]:
    "Every page of the documentation parses; its sidebar is complete and its links lead somewhere"
    return [Job("pages", "site", 15, lambda: call("python", "tools/pages.py"))]


def tests(files: list[Path] | None = None) -> bool:
    "pytest over tests/ on all workers, on kernels of their own: some tests kill what started them"
    report = ROOT / ("build/some-tests.xml" if files else "build/tests.xml")
    report.unlink(missing_ok=True)
    options = ["-q", "-rs", "-n", WORKERS, "--dist", "worksteal", "--durations=5", "-p", "no:cacheprovider"]
    with cold(): return call("python", "-m", "pytest", *(files or ["tests"]), *options, f"--junitxml={report}")


STEPS = {"sync": sync_jobs, "notebooks": notebook_jobs, "tests": tests, "experiments": experiment_jobs, "rows": row_jobs, "pages": page_jobs}


def work(queue: SimpleQueue, passed: dict[str, list[bool]]) -> None:
    "Do jobs until none is left"
    while True:
        try: job = queue.get_nowait()
        except Empty: return
        start = time.time()
        try: good = job.call()
        except Exception as error: good = print(f"{job.step} {job.name}: {error!r}")
        passed.setdefault(job.step, []).append(bool(good))
        print(f"{'passed' if good else 'FAILED'}  {job.step:<12} {job.name:<24} {time.time() - start:6.1f} s", flush=True)


def side_by_side(jobs: list[Job]) -> dict[str, list[bool]]:
    "All jobs, the longest first; step → whether each went well"
    queue, passed = SimpleQueue(), {}
    for job in sorted(jobs, key=lambda job: -job.seconds): queue.put(job)
    threads = [threading.Thread(target=work, args=(queue, passed)) for _ in range(WORKERS)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return passed


def budget() -> list[str]:
    "What notebooks took, beside what they may; a table to read, no test"
    took = sorted(((float(f.read_text()), f.name) for f in SECONDS.glob("*") if (ROOT / f"nbs/{f.name}.ipynb").exists()), reverse=True)
    if not took: return []
    average = sum(seconds for seconds, _ in took) / len(took)
    over = [f"  {seconds:6.1f} CPU-s  {name}" + (f"  more than {BUDGET}" if seconds > BUDGET else "") for seconds, name in took if seconds > AVERAGE]
    return [f"notebooks: {average:.1f} CPU-s on average" + (f", more than {AVERAGE}" if average > AVERAGE else ""), *over]


def run(names: list[str]) -> int:
    "Steps by name, jobs of all side by side, tests last; 1 if any failed"
    start, made = time.time(), {name: STEPS[name]() for name in names if name != "tests"}
    passed = side_by_side([job for jobs in made.values() for job in jobs])
    lines = [f"{'passed' if all(passed[name]) else 'FAILED'}  {name:<12} {sum(passed[name])} of {len(jobs)}" for name, jobs in made.items()]
    lines.append(f"after {time.time() - start:.0f} s")
    if "tests" in names:
        print(f"\n=== tests: {tests.__doc__}", flush=True)
        good = tests()
        lines.append(f"{'passed' if good else 'FAILED'}  tests        {count()}, after {time.time() - start:.0f} s")
    print("\n=== summary", *(budget() if "notebooks" in names else []), *lines, sep="\n")
    return int(any(line.startswith("FAILED") for line in lines))


def count() -> str:
    "What pytest's report says"
    report = ROOT / "build/tests.xml"
    counts = ElementTree.parse(report).getroot()[0].attrib if report.exists() else {"errors": "1"}
    return ", ".join(f"{counts.get(what, 0)} {what}" for what in ("tests", "failures", "errors", "skipped"))


def changed(commit: str = "HEAD") -> int:
    "What a change since a commit reaches, as much as fits in a minute: sync, ruff, notebooks, tests"
    start, files = time.time(), reach.changed_files(ROOT, commit)
    jobs = [*sync_jobs(), Job("lint", "ruff", 1, lambda: call("ruff", "check", "."))]
    changed = [f for f in sorted((ROOT / "nbs").glob("*.ipynb")) if f.relative_to(ROOT).as_posix() in files]
    jobs += notebook_jobs([f for f in changed if known_seconds(f) <= BUDGET]) if changed else []
    passed = side_by_side(jobs)
    chosen, left = reach.chosen(reach.reached(ROOT, files), reach.seconds(ROOT / "build/tests.xml"), WORKERS * (55 - (time.time() - start)))
    good = all(all(p) for p in passed.values()) and (not chosen or tests([ROOT / f for f in chosen]))
    for f in left: print(f"left to `make test`: {f}")
    print(f"{'passed' if good else 'FAILED'}  after {time.time() - start:.0f} s: {len(files)} changed files, {len(chosen)} files of tests, {len(left)} left")
    return int(not good)


def main(names: list[str]) -> int:
    "Run the steps named, or all; 1 if any failed"
    for folder in (SECONDS, ROOT / "build/logs"): folder.mkdir(parents=True, exist_ok=True)
    if names[:1] == ["--changed"]:
        with warm(): return changed(*names[1:])
    unknown = set(names) - set(STEPS)
    if unknown: sys.exit(f"no step named {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    with warm(): failed = run([step for step in STEPS if not names or step in names])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{spent.ru_utime + spent.ru_stime:.0f} CPU-s for {WORKERS} workers")
    return failed


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")
    sys.exit(main(sys.argv[1:]))
