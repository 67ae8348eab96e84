"""Worker processes that execute runs. The notebook `97_execute` explains what they promise and shows it."""
import ctypes, json, logging, os, shutil, signal, sys, time, traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, resource_tracker
from pathlib import Path

from refine_nb._files import fsync_tree, try_lock, write_atomic
from refine_nb._signals import DeferredInterrupt, sigint_blocked
from refine_nb._attempts import CARRIED, let_go, new_attempt, publish, published, read_back, REQUEST

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
RETRIES = 2  # a run whose worker or kernel died is tried this many times more
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
    os.environ[REQUEST] = str(folder / "request.json")
    try:
        with output_to(folder / "kernel.log"):
            papermill.execute_notebook(spec["notebook"], str(folder / "executed.ipynb"), spec["params"], kernel_name="python3", cwd=spec["root"], progress_bar=False)
    except papermill.PapermillExecutionError as error: return error
    finally: del os.environ[REQUEST]
    return None


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
    if not record.exists(): return "failed", keep_failure(runs, spec["id"], str(error or "the notebook ended without run.finish"), folder)
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
    if error and found["status"] == "ok": return "ok", f"{error}".rstrip() + " (after run.finish: the result stands)"
    return found["status"], found["error"] or ""


def execute_one(
    spec: dict,  # id, params, corpus, experiment; paths: notebook, root, runs
) -> tuple[str, str]:
    "Run one notebook, once: ('ok' | 'diverged' | 'failed' | 'died' | 'already' | 'elsewhere', text)"
    from nbclient.exceptions import DeadKernelError
    runs = Path(spec["runs"])
    with try_lock(runs / ".attempts" / spec["id"] / ".lock") as mine:
        if published(runs / spec["id"]): return "already", ""
        if not mine: return "elsewhere", ""
        folder = new_attempt(runs, spec["id"])
        write_atomic(folder / "request.json", json.dumps(spec, indent=1))
        try: return conclude(spec, folder, run_notebook(spec, folder))
        except DeadKernelError: return "died", "its kernel died"
        except Exception as error:
            if type(error) is RuntimeError and str(error).startswith("Kernel "): return "died", str(error)  # jupyter_client's: it died or kept silent at its start
            return "failed", keep_failure(runs, spec["id"], traceback.format_exc(), folder)
        finally: let_go(folder)


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
    "What came back; a broken pool means that the worker died"
    try: return future.result()
    except BrokenProcessPool: return "died", "its worker died"


def local_engine(
    specs: Iterable[dict],   # runs that need nothing of each other
    workers: int,            # how many at a time
    execute=execute_one,     # idempotent: a spec may be executed again at any time
) -> Iterator[tuple[dict, str, str]]:
    "(spec, outcome, text) as runs end; a run whose worker or kernel died is tried again, up to a cap"
    queue, busy, deaths = deque(specs), {}, Counter()
    idle = [Worker() for _ in range(min(workers, len(queue)))]
    with DeferredInterrupt() as ctrl_c:
        try:
            while queue or busy:
                ctrl_c.check()
                while queue and idle:
                    worker, spec = idle.pop(), queue.popleft()
                    busy[worker.submit(execute, spec)] = worker, spec
                for future in wait(busy, POLL, FIRST_COMPLETED).done:
                    worker, spec = busy.pop(future)
                    outcome, text = outcome_of(future)
                    if outcome == "died":
                        worker.end()
                        deaths[spec["id"]] += 1
                    idle.append(worker)
                    if outcome == "elsewhere":
                        queue.append(spec)
                        time.sleep(0 if len(queue) > 1 else 1)  # another sweep is at it: look again
                    elif outcome == "died" and deaths[spec["id"]] <= RETRIES: queue.appendleft(spec)
                    elif outcome == "died": yield spec, "failed", keep_failure(Path(spec["runs"]), spec["id"], f"{text}, {deaths[spec['id']]} times", None)
                    else: yield spec, outcome, text
        except BaseException:
            for worker, _ in busy.values(): worker.end()
            raise
        finally:
            for worker in idle: worker.end(kill=False)
