"""A recorded commit and today's code, run side by side on shortened arms. The notebook `98_verify` explains and shows it."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from ._arms import PROBLEMS, TEXT, TEXTS, Arm, VerifyError, shortened, typed
from ._definitions import Code
from ._files import json_digest
from ._project import git, git_bytes
from ._verify_side import nothing
from .parameters import read_parameters
from .provenance import PACKAGE


def package_of(
    root: Path,  # a checkout
) -> Path:
    "The library of a checkout: its own, or else the one that is installed"
    return root / "refine_nb" if (root / "refine_nb" / "__init__.py").exists() else PACKAGE


def check_out(
    root: Path,        # project folder
    commit: str,       # a recorded one
    experiment: str,   # name of a notebook
    folder: Path,      # gets the library and the notebook as they were
) -> Path:
    "An old commit in a folder of its own; refused in words where git does not have it"
    if folder.exists(): return folder
    notebook = f"experiments/{experiment}.ipynb"
    if git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        shallow = git(root, "rev-parse", "--is-shallow-repository") == "true"
        way = "git fetch --unshallow" if shallow else "its rows must be recorded again"
        raise VerifyError(f"commit {commit[:9]} is not in this repository: {way}")
    there = (git(root, "ls-tree", "--name-only", commit, "./", "./experiments/") or "").splitlines()
    if notebook not in there: raise VerifyError(f"commit {commit[:9]} has no {notebook}")
    paths = [notebook, *(["refine_nb"] if "refine_nb" in there else [])]
    unpack(root, commit, paths, folder)
    return folder



def unpack(
    root: Path,        # project folder
    commit: str,       # an old one
    paths: list[str],  # in it
    folder: Path,      # gets them
) -> None:
    "Files of a commit in a folder"
    packed = git_bytes(root, "archive", "--format=tar", commit, *paths)
    if packed is None: raise VerifyError(f"git cannot give {', '.join(paths)} of commit {commit[:9]}")
    tarfile.open(fileobj=BytesIO(packed)).extractall(folder, filter="data")


@dataclass
class Unit:
    "Arms of one experiment and one commit, which are run together"
    commit: str
    experiment: str
    arms: list[Arm]
    before: dict = field(default_factory=dict)  # arm id → what the recorded commit gives
    after: dict = field(default_factory=dict)   # arm id → what today's code gives


_TOGETHER = 16  # arms in a unit: the imports, two seconds, are shared


def units_of(
    arms: list[Arm],  # to be verified
) -> list[Unit]:
    "Arms in groups, those of one sweep together"
    groups = defaultdict(list)
    for arm in arms: groups[arm.commit, arm.experiment, arm.sweep].append(arm)
    return [Unit(commit, experiment, group[i : i + _TOGETHER]) for (commit, experiment, _), group in groups.items()
            for i in range(0, len(group), _TOGETHER)]


def job_of(
    unit: Unit,        # arms of one experiment
    tree: Path,        # the checkout to run
    scratch: Path,     # an empty folder
    rows: Mapping[str, dict],  # id → row, of all sweeps
    limit: int,        # CPU seconds for an arm
    watch: bool,       # whether to note what is executed
) -> tuple[dict, dict[str, str]]:
    "(the job for `_verify_side`, arm id → name of its run); arms that are equal after shortening are run once"
    notebook = tree / "experiments" / f"{unit.experiment}.ipynb"
    if not notebook.exists(): raise VerifyError(f"there is no experiment {unit.experiment} any more")
    spec, runs, names = read_parameters(notebook), {}, {}
    for arm in unit.arms:
        params = shortened(unit.experiment, typed(arm.row, spec))
        refs = [v[4:] for v in params.values() if isinstance(v, str) and v.startswith("run:")]
        lost = [id for id in refs if id not in rows]
        if lost: raise VerifyError(f"run {lost[0]}, on which {arm.sweep} builds, is in no table of results/")
        needs = {id: shortened(unit.experiment, typed(rows[id], spec)) for id in refs}
        same = {n: f"run:{json_digest(needs[v[4:]])}" if str(v).startswith("run:") else v for n, v in params.items()}
        names[arm.id] = json_digest(same)
        runs.setdefault(names[arm.id], dict(name=names[arm.id], params=params, needs=needs))
    package = package_of(tree)
    job = dict(notebook=str(notebook), scratch=str(scratch), package=str(package), watch=watch, limit=limit,
               problems=PROBLEMS, runs=list(runs.values()))
    job |= dict(characters=TEXTS.get(unit.experiment, TEXT) if "corpus" in spec.types else 0)
    return job, names


_SIDE = Path(__file__).with_name("_verify_side.py")


class Runner:
    "A process that has imported the libraries, and forks for every job; it ends with its group"

    def __init__(self):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        env = os.environ | threads | dict(MPLBACKEND="Agg", PYTHONHASHSEED="0", CUDA_VISIBLE_DEVICES="")
        for name in ("PYTHONPATH", "REFINE_NB_REQUEST"): env.pop(name, None)
        command = [sys.executable, "-P", _SIDE]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=env, start_new_session=True)

    def start(self,
        job: dict,      # from `job_of`
        folder: Path,   # for its files
    ) -> None:
        "Hand over a job"
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        print(folder, file=self.process.stdin, flush=True)

    def ended(self,
        folder: Path,  # of a job
    ) -> bool:
        "Whether a job is done"
        code = self.process.poll()
        if code is not None: raise VerifyError(f"a process that runs arms died with exit code {code}: start again")
        return (folder / "ended").exists()

    def stop(self) -> None:
        "End it and what it started"
        if self.process.poll() is None: os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def results_of(
    names: dict[str, str],  # arm id → name of its run
    folder: Path,           # of the side
) -> dict[str, dict]:
    "arm id → what came of it"
    lines = (folder / "out").read_text(encoding="utf-8").splitlines()
    done = {r["name"]: r for r in map(json.loads, lines)}
    said = (folder / "err").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    lost = nothing(f"it did not run: {said[-1] if said else 'the process died'}")
    return {id: done.get(name, lost) for id, name in names.items()}


_LIMIT = 120  # CPU seconds for an arm on a side


class _Pair:
    "The two sides of a unit, one after the other"

    def __init__(self,
        unit: Unit,           # arms to run
        work: object,   # of their project
        runner: Runner,       # idle
        folder: Path,         # for files; holds the checkouts too
        number: int,          # of the unit
    ):
        self.unit, self.work, self.runner, self.side = unit, work, runner, "before"
        self.folder = folder / str(number)
        tree = check_out(work.root, unit.commit, unit.experiment, folder / f"{unit.commit}-{unit.experiment}")
        self.trees = {"before": tree, "after": work.root}
        self.start()

    def start(self) -> None:
        "Start the side whose turn it is"
        scratch = self.folder / self.side
        scratch.mkdir(parents=True)
        job, self.names = job_of(self.unit, self.trees[self.side], scratch, self.work.rows, _LIMIT, self.side == "after")
        self.runner.start(job, scratch)

    def ended(self) -> bool:
        "Whether both sides are done; starts the second one after the first"
        if not self.runner.ended(self.folder / self.side): return False
        setattr(self.unit, self.side, results_of(self.names, self.folder / self.side))
        shutil.rmtree(self.folder / self.side)
        if self.side == "after": return True
        if all(r["error"] for r in self.unit.before.values()):
            self.unit.after = self.unit.before
            return True
        self.side = "after"
        try: self.start()
        except VerifyError as error: self.unit.after = failed_side(self.unit, error)
        return bool(self.unit.after)


def run_units(
    work: object,  # the project
    units: list[Unit],   # what to run
    workers: int,        # units at a time
) -> Iterator[list[dict]]:
    "Certificates, unit by unit as they end; no process and no folder outlives it"
    waiting, busy = list(enumerate(units)), []
    runners = [Runner() for _ in range(min(workers, len(units)))]
    idle = [*runners]
    with tempfile.TemporaryDirectory(prefix="refine_nb_verify_") as folder, _ended_after(runners):
        while waiting or busy:
            while waiting and idle:
                number, unit = waiting.pop(0)
                try: busy.append(_Pair(unit, work, idle[-1], Path(folder), number))
                except VerifyError as error: yield _cannot_run(work, unit, error)
                else: idle.pop()
            time.sleep(0.05)
            for pair in [p for p in busy if p.ended()]:
                busy.remove(pair)
                idle.append(pair.runner)
                yield work.conclude(pair.unit, Code(pair.trees["before"], package_of(pair.trees["before"])))


@contextmanager
def _ended_after(runners: list[Runner]):
    "Processes do not outlive an error or Ctrl-C"
    try: yield
    finally:
        for runner in runners: runner.stop()


def failed_side(unit: Unit, error: Exception) -> dict[str, dict]:
    "Results of a side that cannot be asked any more"
    return {a.id: nothing(str(error)) for a in unit.arms}


def _cannot_run(work: object, unit: Unit, error: Exception) -> list[dict]:
    "Certificates of arms whose recorded commit cannot be run"
    unit.before = unit.after = failed_side(unit, error)
    return work.conclude(unit, work.code)
