"""Worker processes that execute runs. The notebook `97_execute` explains what they promise and shows it."""
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, resource_tracker
from pathlib import Path

from refine_nb._files import fsync_tree, try_lock, write_atomic
from refine_nb._signals import DeferredInterrupt, sigint_blocked
from refine_nb._attempts import (
    CARRIED, REQUEST, attempts_at, dead_attempt, let_go, new_attempt, publish, published, read_back,
)

THREADS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
)
RETRIES = 2  # a run whose worker or kernel died is tried this many times more
PRINTED = 60  # seconds that a cell's last words may take to arrive
POLL = 0.5   # seconds between looks at Ctrl-C: a signal that another thread gets does not wake the main one


def settle(
    driver: int,  # process id of the driver
) -> None:
    "In a new worker: one thread per kernel, deaf to Ctrl-C (the driver hears it), dead when the driver dies"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked until here, see `sigint_blocked`
    if sys.platform == "linux": ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != driver: os._exit(1)  # it died before the line above
    os.environ.update(dict.fromkeys(THREADS, "1"))
    logging.getLogger("papermill").setLevel(logging.ERROR)
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's grammar of links takes seconds to build and checks nothing in a notebook


@contextmanager
def output_to(
    path: Path,  # a log file
):
    "What this process and its kernel write to the terminal goes to a file, so that the bar stays whole"
    saved = os.dup(1), os.dup(2)
    with open(path, "ab") as log:
        for fd in (1, 2): os.dup2(log.fileno(), fd)
    try: yield
    finally:
        for fd, old in zip((1, 2), saved):
            os.dup2(old, fd)
            os.close(old)


def run_notebook(
    spec: dict,    # what to run
    folder: Path,  # the attempt's folder, with its request.json
) -> BaseException | None:
    "Execute the notebook with papermill; an error of the notebook's own is returned, a dead kernel's is raised"
    import papermill
    options = dict(kernel_name="python3", cwd=spec["root"], progress_bar=False, iopub_timeout=PRINTED)
    if _names_no_language(spec["notebook"]): options |= dict(language="python")
    with kernel_settings(folder), output_to(folder / "kernel.log"):
        try: papermill.execute_notebook(spec["notebook"], str(folder / "executed.ipynb"), spec["params"], **options)
        except papermill.PapermillExecutionError as error: return error
    return None


def _names_no_language(notebook: str) -> bool:
    "Whether a notebook lost the field by which papermill knows how to write parameters"
    about = json.loads(Path(notebook).read_bytes()).get("metadata", {})
    return not (about.get("kernelspec", {}).get("language") or about.get("language_info", {}).get("name"))


@contextmanager
def kernel_settings(
    folder: Path,  # the attempt's folder
):
    "The kernel finds its request, and none of its user's start-up files, profiles and extensions of IPython"
    settings = folder / ".ipython"
    given = {REQUEST: str(folder / "request.json"), "IPYTHONDIR": str(settings)}
    before = {name: os.environ.get(name) for name in given}
    settings.mkdir()
    os.environ.update(given)
    try: yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None: os.environ[name] = value
        shutil.rmtree(settings, ignore_errors=True)


def keep_failure(
    runs: Path,           # the folder of runs
    id: str,              # run id
    text: str,            # the traceback
    folder: Path | None,  # the attempt, if there is one
    resume: bool = True,  # whether the next attempt goes on from this one's checkpoints
) -> str:
    "Keep what tells of a failure in runs/.failed/<id>, in place of an earlier one; returns the traceback"
    kept = runs / ".failed" / id
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in sorted(folder.iterdir()) if folder else []:
        if not (resume and path.name in CARRIED): path.rename(kept / path.name)
    if folder and not any(folder.iterdir()): folder.rmdir()
    write_atomic(kept / "traceback.txt", text)
    return text


def conclude(
    spec: dict,                   # what was run
    folder: Path,                 # the attempt
    error: BaseException | None,  # the notebook's own error
) -> tuple[str, str]:
    "Publish what was asked for, keep what failed: (outcome, text)"
    runs, record = Path(spec["runs"]), folder / "record.json"
    if not record.exists():
        said = str(error or "the notebook ended without run.finish")
        return "failed", keep_failure(runs, spec["id"], said, folder)
    found = json.loads(record.read_text(encoding="utf-8"))
    wrong = read_back(spec, found)
    if wrong: return "failed", keep_failure(runs, spec["id"], wrong, folder, resume=False)
    fsync_tree(folder)
    write_atomic(folder / "run.json", json.dumps(found, indent=1))
    record.unlink()
    if not publish(folder, runs / spec["id"]):
        shutil.rmtree(folder)
        return "already", "another attempt was first"
    shutil.rmtree(runs / ".failed" / spec["id"], ignore_errors=True)
    if error and found["status"] == "ok": return "ok", _last_line(error) + " (after run.finish: the result stands)"
    return found["status"], found["error"] or ""


def _last_line(error: BaseException) -> str:
    "What an error says in the end, never empty"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def publish_finished(
    spec: dict,  # of a run
) -> tuple[str, str] | None:
    "Publish what an attempt that died after `run.finish` left whole; None where there is no such attempt"
    for folder in attempts_at(Path(spec["runs"]), spec["id"]):
        if not (folder / "record.json").exists(): continue
        with dead_attempt(folder, wait=10) as dead:
            if dead and not read_back(spec, json.loads((folder / "record.json").read_bytes())):
                return conclude(spec, folder, None)
    return None


def execute_one(
    spec: dict,  # id, params, corpus, experiment; paths: notebook, root, runs
) -> tuple[str, str]:
    "Run one notebook, once: ('ok' | 'diverged' | 'failed' | 'died' | 'already' | 'elsewhere', text)"
    runs = Path(spec["runs"])
    with try_lock(runs / ".attempts" / spec["id"] / ".lock") as mine:
        if published(runs / spec["id"]): return "already", ""
        if not mine: return "elsewhere", ""
        if done := publish_finished(spec): return done
        folder = new_attempt(runs, spec["id"])
        write_atomic(folder / "request.json", json.dumps(spec, indent=1))
        try: return _executed(spec, folder)
        finally: let_go(folder)


def _executed(spec: dict, folder: Path) -> tuple[str, str]:
    "Run a notebook in an attempt; whatever ends its kernel, a record that is complete is published"
    try: return conclude(spec, folder, run_notebook(spec, folder))
    except Exception as error:
        if (folder / "record.json").exists(): return conclude(spec, folder, error)
        if _kernel_died(error): return "died", _last_line(error)
        return "failed", keep_failure(Path(spec["runs"]), spec["id"], traceback.format_exc(), folder)


def _kernel_died(error: Exception) -> bool:
    "Whether a kernel died, or kept silent at its start, which jupyter_client tells by a plain RuntimeError"
    from nbclient.exceptions import DeadKernelError
    return isinstance(error, DeadKernelError) or type(error) is RuntimeError and str(error).startswith("Kernel ")


class Worker:
    "A pool of one process, rebuilt when the process dies: a death is known to be its own and costs no neighbour anything"

    def __init__(self): self.pool, self.pid = None, None

    def start(self) -> None:
        "Start the process, and wait until it can work"
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=settle, initargs=(os.getpid(),))
        resource_tracker.ensure_running()  # of multiprocessing; its start would let Ctrl-C through
        with sigint_blocked(): asked = self.pool.submit(os.getpid)
        self.pid = asked.result()

    def submit(self,
        call,        # a function at the top level of a module
        spec: dict,  # its argument
    ):
        "Hand over a piece of work; the future carries it back. A process that died idle is replaced"
        try:
            if self.pool is None: self.start()
            return self.pool.submit(call, spec)
        except BrokenProcessPool: self.end()
        self.start()
        return self.pool.submit(call, spec)

    def end(self,
        kill: bool = True,  # whether to end it in the middle of its work
    ) -> None:
        "End the process"
        if self.pool is None: return
        for child in active_children():
            if kill and child.pid == self.pid: child.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool = self.pid = None


def outcome_of(
    future,  # a finished future of `execute_one`
) -> tuple[str, str]:
    "What came back; a broken pool means that the worker died, and an error of the worker's own fails this run alone"
    try: return future.result()
    except BrokenProcessPool: return "died", "its worker died"
    except Exception as error: return "failed", f"{type(error).__name__}: {error}"


class _Queue:
    "Runs that wait, and runs at work; each on a process of its own"

    def __init__(self, specs: Iterable[dict], workers: int, execute):
        self.waiting, self.busy, self.deaths, self.execute = deque(specs), {}, Counter(), execute
        self.idle = [Worker() for _ in range(min(workers, len(self.waiting)))]

    def hand_out(self) -> Iterator[tuple[dict, str, str]]:
        "Give waiting runs to idle workers; those that cannot be started fail alone"
        while self.waiting and self.idle:
            worker, spec = self.idle.pop(), self.waiting.popleft()
            try: self.busy[worker.submit(self.execute, spec)] = worker, spec
            except (OSError, BrokenProcessPool) as error:
                self.idle.append(worker)
                yield spec, "failed", f"no worker could be started: {type(error).__name__}: {error}"

    def collect(self) -> Iterator[tuple[dict, str, str]]:
        "Runs that have ended for good; a run whose worker or kernel died waits again"
        for future in wait(self.busy, POLL, FIRST_COMPLETED).done:
            worker, spec = self.busy.pop(future)
            outcome, text = outcome_of(future)
            if outcome == "died":
                worker.end()
                self.deaths[spec["id"]] += 1
            self.idle.append(worker)
            if outcome == "elsewhere":
                self.waiting.append(spec)
                time.sleep(0 if len(self.waiting) > 1 else 1)  # another sweep is at it: look again
            elif outcome != "died": yield spec, outcome, text
            elif self.deaths[spec["id"]] <= RETRIES: self.waiting.appendleft(spec)
            else: yield spec, "failed", self.give_up(spec, f"{text}, {self.deaths[spec['id']]} times")

    def give_up(self, spec: dict, text: str) -> str:
        "Note a run whose worker or kernel died too often"
        try: return keep_failure(Path(spec["runs"]), spec["id"], text, None)
        except OSError as error: return f"{text}; and that could not be kept: {error}"


def local_engine(
    specs: Iterable[dict],   # runs that need nothing of each other
    workers: int,            # how many at a time
    execute=execute_one,     # idempotent: a spec may be executed again at any time
) -> Iterator[tuple[dict, str, str]]:
    "(spec, outcome, text) as runs end; a run whose worker or kernel died is tried again, up to a cap"
    queue = _Queue(specs, workers, execute)
    with DeferredInterrupt() as ctrl_c:
        try:
            while queue.waiting or queue.busy:
                ctrl_c.check()
                yield from queue.hand_out()
                if queue.busy: yield from queue.collect()
        except BaseException:
            for worker, _ in queue.busy.values(): worker.end()
            raise
        finally:
            for worker in queue.idle: worker.end(kill=False)
