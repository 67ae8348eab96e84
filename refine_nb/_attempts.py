"""Folders of runs: at work, dead or published; what a sweep asked, what came back.

The notebook `93_records` explains the protocol: at least once, published exactly once.
"""
import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ._files import fsync_path, write_atomic

REQUEST = "REFINE_NB_REQUEST"  # environment variable: a sweep's request, a JSON file in the attempt's folder

class RecordError(ValueError):
    "A record of a run that cannot be read, with the way out"


_held: dict[Path, int] = {}  # attempt folder → open descriptor that carries our shared lock


def hold(
    folder: Path,  # an attempt's folder
) -> None:
    "Mark an attempt as alive for as long as this process lives"
    _held[folder] = os.open(folder, os.O_RDONLY)
    fcntl.flock(_held[folder], fcntl.LOCK_SH)


def let_go(
    folder: Path,  # an attempt's folder
) -> None:
    "Take this process's mark off an attempt"
    if folder in _held: os.close(_held.pop(folder))


def held_attempts(
    id: str,  # run id
) -> list[Path]:
    "Attempts at a run that this process holds"
    return [folder for folder in _held if folder.parent.name == id]


def new_attempt(
    runs: Path,  # the folder of runs
    id: str,     # run id
) -> Path:
    "A new attempt's folder, alive from the moment it can be seen"
    parent = runs / ".attempts" / id
    folder = parent / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    hidden = folder.with_name("." + folder.name)
    hidden.mkdir(parents=True)
    hold(hidden)
    hidden.rename(folder)
    _held[folder] = _held.pop(hidden)
    return folder


_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}  # kinds of file systems with one host


def _on_local_disk(folder: Path) -> bool:
    "Whether only processes of this machine can work in a folder, so that its locks tell all there is to know"
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists(): return False
    place = os.stat(folder).st_dev
    device = f"{os.major(place)}:{os.minor(place)}"
    lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    return any(line[2] == device and line[line.index("-") + 1] in _LOCAL for line in lines)


def _of_here(folder: Path) -> bool:
    "Whether an attempt can only be of this machine, by its host's name (which may change) or by its disk"
    return folder.name.startswith(socket.gethostname() + "-") or _on_local_disk(folder)


def _creator_gone(folder: Path) -> bool:
    "Whether the process that made this attempt, on this machine, has ended"
    try: os.kill(int(folder.name.rsplit("-", 2)[1]), 0)
    except ProcessLookupError: return True
    except PermissionError: pass
    return False


def _lock_dead(folder: Path, wait: float) -> int | None:
    "A descriptor that locks a dead attempt, or None; a kernel that outlives its dead parent gets `wait` seconds to end"
    if not _of_here(folder): return None
    fd, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if not _creator_gone(folder) or time.monotonic() > deadline: break
            time.sleep(0.1)
    os.close(fd)
    return None


@contextmanager
def dead_attempt(
    folder: Path,      # an attempt's folder
    wait: float = 0,   # seconds given to a kernel whose parent has died
) -> Iterator[bool]:
    "Whether an attempt is dead; nobody else takes it over meanwhile"
    fd = _lock_dead(folder, wait)
    try: yield fd is not None
    finally:
        if fd is not None: os.close(fd)


def attempts_at(
    runs: Path,  # the folder of runs
    id: str,     # run id
) -> list[Path]:
    "Folders of the attempts at a run, dead or alive"
    return [p for p in sorted((runs / ".attempts" / id).glob("*-*-*")) if not p.name.startswith(".") and p.is_dir()]


CARRIED = ("start.json", "checkpoints", "metrics.jsonl")  # what a new attempt takes over, the metrics last


def adopt(
    folder: Path,       # the new attempt
    wait: float = 10,   # seconds given to a kernel whose parent has died
    code: str | None = None,  # from `code_hash`; what other code left is set aside
) -> bool:
    "Take over start, checkpoints and metrics of the latest dead attempt with the same code; True if there was one"
    there = attempts_at(folder.parents[2], folder.parent.name)
    others = [p for p in there if p != folder and any((p / name).exists() for name in CARRIED)]
    # killed while it adopted: first, since what it took is missing in the one before
    half, found = lambda p: not (p / "metrics.jsonl").exists(), False
    for other in sorted(others, key=lambda p: (half(p), _last_touched(p)), reverse=True):
        with dead_attempt(other, wait) as dead:
            if not dead: continue
            if _of_other_code(other, code):
                print(f"an unfinished attempt of other code is left in {set_aside(other)}: this run starts afresh")
                continue
            _carry(other, folder)
            shutil.rmtree(other)
        found = True
        if (folder / "metrics.jsonl").exists(): break
    return found


def _carry(other: Path, folder: Path) -> None:
    "Hand what a dead attempt left to a new one; its start is copied, so that what is left behind still says its code"
    for name in CARRIED:
        if not (other / name).exists() or (folder / name).exists(): continue
        if name == "start.json": write_atomic(folder / name, (other / name).read_text(encoding="utf-8"))
        else: (other / name).rename(folder / name)


def _of_other_code(attempt: Path, code: str | None) -> bool:
    "Whether a dead attempt does not say that it ran this code"
    try: said = json.loads((attempt / "start.json").read_bytes()).get("code")
    except (FileNotFoundError, ValueError): said = None
    return code is not None and said != code


def _last_touched(folder: Path) -> float:
    "When something last changed in an attempt"
    return max(p.stat().st_mtime for p in (folder, *folder.iterdir()))


def first_start(
    folder: Path,  # the attempt, which has adopted what there is to adopt
    head: dict,    # of this start: commit, dirty, cards
) -> dict:
    "When, at which commit and under which claim cards the run was *first* started: attempts that go on from others keep it"
    path = folder / "start.json"
    kept = {k: head.get(k) for k in ("commit", "dirty", "cards", "code")}
    now = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds")} | kept
    if not path.exists(): write_atomic(path, json.dumps(now, indent=1))
    return json.loads(path.read_text(encoding="utf-8"))


def published(
    target: Path,  # runs/<id>
) -> dict | None:
    "The record of a published run that counts: one whose code was the code in the file"
    record = read_record(target / "run.json")
    return record if record and record["as_saved"] else None


def read_record(
    path: Path,  # run.json
) -> dict | None:
    "A record, or None where there is none; raises `RecordError` for a file that is cut or damaged"
    try: record = json.loads(path.read_bytes())
    except FileNotFoundError: return None
    except ValueError as error: raise RecordError(_way_out(path, str(error))) from None
    if isinstance(record, dict) and "as_saved" in record: return record
    raise RecordError(_way_out(path, "it is no record"))


def _way_out(path: Path, why: str) -> str:
    "What to do where a record cannot be read"
    return f"{path} cannot be read ({why}): remove the folder {path.parent}, and the sweep runs it again"


def set_aside(
    target: Path,  # runs/<id>, or an attempt at it
) -> Path:
    "Move a run away that another one takes the place of; returns where it is now"
    attempt = target.parent.parent.name == ".attempts"
    runs, id = (target.parents[2], target.parent.name) if attempt else (target.parent, target.name)
    aside = runs / ".replaced" / f"{id}-{uuid.uuid4().hex[:8]}"
    aside.parent.mkdir(exist_ok=True)
    target.rename(aside)
    return aside


def publish(
    folder: Path,  # a complete attempt
    target: Path,  # runs/<id>
) -> bool:
    "One rename; False if another attempt was first"
    if target.exists() and not published(target) and published(folder): set_aside(target)
    try: folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST): raise
        return False
    fsync_path(target.parent)
    return True


def whole(
    folder: Path,  # runs/<id>
) -> bool:
    "Whether a published run still has the files it left"
    record = published(folder)
    return bool(record) and all((folder / name).exists() for name in record["files"])


def read_back(
    spec: dict,    # what the sweep asked for
    record: dict,  # what the notebook says it ran
) -> str:
    "Why a record may not be published under this request; empty if it may"
    ran = record["params"]
    differ = {n: v for n, v in spec["params"].items() if n not in ran or ran[n] != v}
    wrong = [f"{n}: asked {v!r}, ran {ran.get(n)!r}" for n, v in differ.items()]
    if record["id"] != spec["id"]: wrong.append(f"id: asked {spec['id']}, ran {record['id']}")
    if not record["as_saved"]: wrong.append("the code that ran is not the code in the files")
    if spec.get("code", record.get("code")) != record.get("code"):
        wrong.append("the code was changed after the sweep was planned: start the sweep again")
    return "; ".join(wrong)
