"""What arms execute, as `executed.json` keeps it: each name and each set of names once. `98_verify` shows it."""
import json
from collections.abc import Mapping
from pathlib import Path

from ._files import write_atomic


def parse_executed(
    data: Mapping[str, object],  # what the file holds; {} for no file
) -> dict[str, frozenset]:
    "arm id → names of the pieces of code that it executes"
    sets = [frozenset(data["names"][i] for i in indices) for indices in data.get("sets", [])]
    return {arm: sets[i] for arm, i in data.get("arms", {}).items()}


def write_executed(
    folder: Path,                       # results/<sweep>
    executed: Mapping[str, frozenset],  # arm id → names
) -> None:
    "What arms execute, each name and each set of names once"
    names = sorted({n for s in executed.values() for n in s})
    sets = sorted(set(executed.values()), key=sorted)
    place = {n: i for i, n in enumerate(names)}
    lines = ",\n".join(json.dumps([place[n] for n in sorted(s)], separators=(",", ":")) for s in sets)
    arms = json.dumps({arm: sets.index(s) for arm, s in sorted(executed.items())}, indent=0)
    text = f'{{"names": {json.dumps(names, indent=0)},\n"sets": [\n{lines}],\n"arms": {arms}}}\n'
    write_atomic(folder / "executed.json", text)
