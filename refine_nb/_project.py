"Where the project is, and what its git says. The notebook `91_provenance` uses both."
import subprocess
from pathlib import Path


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
    "What git says, or None where there is no git or no commit"
    try: done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired): return None
    return done.stdout.strip() if done.returncode == 0 else None
