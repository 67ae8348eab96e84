"Where the project is, and what its git says. The notebook `91_provenance` uses both."
import os
import subprocess
from pathlib import Path


class GitError(ValueError):
    "A git that is there and refuses to answer, in its own words"


PATIENCE = 120  # seconds that a call of git may take
ANSWERS = (
    "not a git repository", "unknown revision", "bad revision", "bad object", "not a valid object name",
    "invalid object name", "ambiguous argument", "does not have any commits", "does not exist in",
    "exists on disk, but not in", "does not exist (neither", "needed a single revision", "but not at stage",
)  # "there is none" is an answer, not a failure


def find_root(
    start: str | Path,  # a file or folder inside the project
) -> Path | None:
    "The nearest folder upwards that holds `experiments/`"
    start = Path(start).resolve()
    return next((p for p in (start, *start.parents) if (p / "experiments").is_dir()), None)


def git(
    root: Path,  # a folder
    *args: str,  # of a git command
) -> str | None:
    "What git says, or None where there is no git, no repository or no such thing; raises `GitError` where it fails"
    output = git_bytes(root, *args)
    return None if output is None else output.decode("utf-8", "replace").strip()


def git_bytes(
    root: Path,          # a folder
    *args: str,          # of a git command
    given: bytes = b"",  # what git reads
) -> bytes | None:
    "The same, to the byte"
    command = ["git", "-C", str(root), *args]
    settings = dict(input=given, capture_output=True, timeout=PATIENCE, env=os.environ | {"LC_ALL": "C"})
    try: done = subprocess.run(command, **settings)
    except OSError: return None
    except subprocess.TimeoutExpired:
        raise GitError(f"git {args[0]} gave no answer within {PATIENCE} s in {root}") from None
    said = " ".join(done.stderr.decode("utf-8", "replace").split())
    if done.returncode == 0: return done.stdout
    if not said or any(answer in said.lower() for answer in ANSWERS): return None
    raise GitError(f"git in {root}: {said}")
