"JSON and files: written whole, locked, on the disk when they say so. The notebook `93_records` shows what they promise."
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def jsonable(
    row: Mapping[str, object],  # numbers, strings, None; 0-d tensors and numpy scalars too
) -> dict:
    "The row in strict JSON's types; names of values that were not finite are kept in `non_finite`"
    row = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
    bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    return {k: None if k in bad else v for k, v in row.items()} | ({"non_finite": bad} if bad else {})


def json_digest(
    value: object,  # anything that strict JSON can hold
) -> str:
    "First 16 hex digits (64 bits) of the SHA-256 of canonical JSON"
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class FileError(ValueError):
    "A file that cannot be read, with the way out"


def read_text(
    path: Path,  # a file of the project
) -> str:
    "Its text, without a byte order mark; refused in words where it cannot be read or is not UTF-8"
    try: return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        raise FileError(f"{path}: line {line} is not UTF-8: save the file as UTF-8") from None
    except OSError as error: raise FileError(f"{path} cannot be read: {error.strerror}") from None


def read_json(
    path: Path,  # a JSON file
) -> object:
    "Its value; refused in words where it is cut or damaged"
    text = read_text(path)
    if line := conflict_line(text):
        raise FileError(f"{path} holds git's conflict markers (line {line}): take either side of it")
    try: return json.loads(text)
    except ValueError as error: raise FileError(f"{path} is no JSON ({error}): restore it from git") from None


def conflict_line(
    text: str,  # of a file that git may have merged
) -> int | None:
    "The first line with one of git's conflict markers, counted from 1, or None"
    lines = enumerate(text.split("\n"), 1)
    return next((i for i, line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))), None)


def write_atomic(
    path: Path,          # replaced in one step
    data: str | bytes,   # new contents
) -> None:
    "Write a file so that after a crash it holds the old contents or the new ones, whole"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally: part.unlink(missing_ok=True)
    fsync_path(path.parent)


def fsync_path(
    path: Path,  # a file or folder
) -> None:
    "Make a file, or the names in a folder, durable"
    fd = os.open(path, os.O_RDONLY)
    try: os.fsync(fd)
    finally: os.close(fd)


def fsync_tree(
    folder: Path,  # with files and folders in it
) -> None:
    "Make every file of a folder durable, and the folder itself"
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink() and (path.is_dir() or path.is_file()): fsync_path(path)


@contextmanager
def lock(
    folder: Path,  # exists
) -> Iterator[None]:
    "Alone in a folder; whoever comes later waits"
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally: os.close(fd)


@contextmanager
def try_lock(
    path: Path,  # a lock file, made where there is none
) -> Iterator[bool]:
    "Whether this process is the only one inside for this file; the system lets go when a process ends"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as f:
        try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: yield False
        else: yield True


def read_jsonl(
    path: Path,  # one JSON value a line, or no file yet
) -> list[dict]:
    "Rows of a file of JSON lines; a last line cut short by a kill is left out"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def last_jsonl_row(
    path: Path,  # one JSON value a line, perhaps being written
) -> dict:
    "The last whole row, read from the end"
    with open(path, "rb") as f:
        f.seek(max(0, path.stat().st_size - 4096))
        lines = f.read().split(b"\n")[:-1]
    try: return json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError: return {}
