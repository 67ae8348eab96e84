"""What git remembers: when a card was first committed in each version, and when an arm was run with each random seed."""
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, cached_property
from pathlib import Path

from ._files import FileError, conflict_line, json_digest, read_text, write_atomic
from ._project import git, git_bytes
from .cards import DECIDES, card_hash, read_card
from .parameters import ParameterError, Parameters, from_text, read_parameters, read_yaml, resolve

FILE = Path("experiments/claims/history.jsonl")  # one line a fact, sorted, so that two branches merge line by line
WATCHED = ("results", "experiments/claims")
csv.field_size_limit(2**30)


@dataclass
class History:
    "Versions of cards, what was pinned for cards that left parameters free, and every start of every arm"
    root: Path                                   # the project's folder
    cards: dict = field(default_factory=dict)    # card id → its versions, the oldest first
    pins: dict = field(default_factory=dict)     # hash of a card → parameters that complete it
    bases: dict = field(default_factory=dict)    # experiment → the parameters that the file does not repeat
    starts: dict = field(default_factory=dict)   # experiment → {parameters: {random seed: starts, sorted}}
    found: dict = field(default_factory=dict)    # what `seeds` has answered

    def version(self, card: Mapping[str, object]) -> dict | None:
        "The entry of this very version of a card"
        return next((v for v in self.cards.get(card["id"], ()) if v["hash"] == card_hash(card)), None)

    def same(self, card: Mapping[str, object]) -> set[str]:
        "Hashes of the versions that made the same prediction, in an unbroken row up to this one"
        mine = self.version(card)
        return {v["hash"] for v in self.cards[card["id"]] if v["since"] == mine["since"]} if mine else {card_hash(card)}

    @cached_property
    def asked(self) -> dict:
        "(experiment, parameters completed by today's defaults) → {random seed: starts}"
        found = {}
        for experiment, arms in self.starts.items():
            for params, seeds in arms.items():
                known = found.setdefault((experiment, complete(self.root, experiment, dict(params))), {})
                for seed, starts in seeds.items():
                    known[seed] = sorted({*known.get(seed, ()), *starts})
        return found

    def seeds(self, row: Mapping[str, object]) -> dict[str, list[str]]:
        "The starts of a row's arm, by random seed"
        if "experiment" not in row: return {}
        key = row["experiment"], tuple(parameters_of(row).items())
        if key not in self.found:
            self.found[key] = self.asked.get((key[0], complete(self.root, key[0], dict(key[1]))), {})
        return self.found[key]


# Reading tables and completing parameters

def parameters_of(
    row: Mapping[str, object],  # of a results table, as text or as values
) -> dict[str, str]:
    "The parameters of a row as text, without the random seed, other runs, and what is empty"
    found = {n: "" if row[n] is None or row[n] != row[n] else str(row[n]) for n in str(row["parameters"]).split()}
    return {n: v for n, v in sorted(found.items()) if n != "seed" and v and not v.startswith("run:")}


def utc(
    started: str,  # ISO time with its offset
) -> str:
    "A time as the history writes it, to the second"
    return datetime.fromisoformat(started).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def declared(
    root: Path,       # the project's folder
    experiment: str,  # name of its notebook
) -> Parameters | None:
    "What the experiment declares today, None where it is gone"
    path = root / "experiments" / f"{experiment}.ipynb"
    return _parameters(path, path.stat().st_mtime_ns) if path.exists() else None


@cache
def _parameters(path: Path, changed: int) -> Parameters | None:
    "What a notebook declares, read once for every state of its file"
    try: return read_parameters(path)
    except (FileError, ParameterError): return None


def study_of(
    root: Path,  # the project's folder
    sweep: str,  # its name
) -> str:
    "The experiment that a sweep runs; the sweep itself where its file is gone"
    path = root / "experiments" / "sweeps" / f"{sweep}.yaml"
    return _notebook(path, path.stat().st_mtime_ns) if path.exists() else sweep


@cache
def _notebook(path: Path, changed: int) -> str:
    "The experiment that a sweep file names, read once for every state of it"
    return read_yaml(path).get("notebook", path.stem)


def complete(
    root: Path,                     # the project's folder
    experiment: str,                # name of its notebook
    params: Mapping[str, object],   # of a row or a card
) -> tuple:
    "Parameters completed by today's defaults; what the notebook no longer declares is left out"
    spec = declared(root, experiment)
    if spec is None: return tuple(sorted((n, str(v)) for n, v in params.items()))
    given = {n: str(v) for n, v in params.items() if n in spec.types and v is not None}
    try: whole = resolve(spec, {n: from_text(v, spec.types[n]) for n, v in given.items()})
    except ValueError: return tuple(sorted(given.items()))  # a parameter has another type today
    return tuple(sorted((n, v) for n, v in whole.items() if n != "seed" and not str(v).startswith("run:")))


def table_starts(
    text: str,  # a runs.csv
) -> Iterator[tuple[str, tuple, str, str]]:
    "(experiment, parameters, random seed, start) of every row"
    for row in csv.DictReader(io.StringIO(text)):
        if {"experiment", "parameters", "started"} <= set(row) and row["started"]:
            yield row["experiment"], tuple(parameters_of(row).items()), _whole(row.get("seed")), utc(row["started"])


def _whole(seed: str | None) -> str:
    "A random seed as text; `3.0` in a column with gaps is 3"
    return str(int(float(seed))) if seed else ""


def add_starts(
    history: History,  # grows
    text: str,         # a runs.csv
) -> None:
    "Take over the starts of a table"
    for experiment, params, seed, start in table_starts(text):
        seeds = history.starts.setdefault(experiment, {}).setdefault(params, {})
        if start not in seeds.get(seed, ()): seeds[seed] = sorted([*seeds.get(seed, ()), start])


def _add_old_starts(history: History, text: str) -> None:
    "Take over the starts of a committed table, as far as it was whole"
    try: add_starts(history, text)
    except (AttributeError, TypeError, ValueError, csv.Error): return


# Versions of cards

def prediction(
    root: Path,                   # the project's folder
    card: Mapping[str, object],   # one version of it
) -> str:
    "Hash of what a card predicts: the note on a pilot, and parameters named at their default, change nothing"
    study = study_of(root, card["sweep"])
    scope, rule = card.get("scope") or {}, {k: v for k, v in card["rule"].items() if k != "pilot"}
    arms = [complete(root, study, scope | (w or {})) for w in (card.get("arm"), *(card.get("controls") or {}).values())]
    return json_digest([card["metric"], rule, arms[0], sorted(map(str, arms[1:]))])


def _leaves(value: object, path: str = "") -> dict[str, object]:
    "Every leaf of a card under its dotted path"
    if not isinstance(value, Mapping): return {path: value}
    return {p: v for k, x in value.items() for p, v in _leaves(x, f"{path}.{k}".strip(".")).items()}


def changes(
    old: Mapping[str, object],  # a version of a card
    new: Mapping[str, object],  # the next one
) -> str:
    "What changed between two versions, in words"
    a, b = (_leaves({k: c[k] for k in DECIDES if c.get(k)}) for c in (old, new))
    names = [n for n in dict.fromkeys([*a, *b]) if a.get(n) != b.get(n)]
    first = sorted(n for n in names if n != "rule.pilot" and n.startswith(("metric", "rule")))
    rest = [n for n in names if n not in first and n != "rule.pilot"]
    spoken = lambda n: f"{n.removeprefix('rule.')} {a.get(n, 'not named')} → {b.get(n, 'not named')}"
    said = [spoken(n) for n in [*first, *rest][:6]]
    more = [f"{len(first) + len(rest) - 6} more"] if len(first) + len(rest) > 6 else []
    return "; ".join([*said, *more, *(["the note on a pilot"] if "rule.pilot" in names else [])])


def add_versions(
    history: History,                       # grows
    found: list[tuple[str, str, str]],      # (time, commit, text) of one card's file, the earliest first
) -> None:
    "Take over the versions of a card; what the history knows of one already stays"
    before = None
    for time, commit, text in found:
        try: card, says = _version(history.root, text, commit)
        except (ValueError, TypeError, KeyError, AttributeError): continue  # it was committed half-written, and decides nothing
        versions, hash = history.cards.setdefault(card["id"], []), card_hash(card)
        known = next((v for v in versions if v["hash"] == hash), None)
        if known is None:
            since = before[0]["since"] if before and before[1] == says else time
            said = changes(before[2], card) if before else ""
            rule = ", ".join(f"{k} {v}" for k, v in card["rule"].items() if k != "pilot")
            known = dict(hash=hash, commit=commit[:10], time=time, since=since)
            known |= dict(says=f"{card['metric']}, {rule}", changes=said)
            versions.append(known)
            versions.sort(key=lambda v: (v["time"], v["hash"]))
        before = known, says, card


def _version(root: Path, text: str, commit: str) -> tuple[dict, str]:
    "A committed card, and the hash of its prediction"
    card = read_card(text, commit)
    return card, prediction(root, card)


def add_cards(
    history: History,                                # grows
    files: Mapping[str, list[tuple[str, str, str]]], # path of a card → (time, commit, text) of its versions
) -> None:
    "Take over the versions of all cards; a file is parsed only where one of its commits is new"
    for name, found in sorted(files.items()):
        known = {v["commit"] for v in history.cards.get(Path(name).stem, ())}
        if {commit[:10] for _, commit, _ in found} - known: add_versions(history, sorted(found))


# git and the file

def _blobs(root: Path) -> dict[tuple[str, str], tuple[str, str]]:
    "(path, blob) → (time, commit) of the first commit with it, along the whole history"
    options = "--full-history", "-m", "--raw", "--no-abbrev", "--relative", "--format=commit %ct %H"
    log = git(root, "log", *options, "--", *WATCHED)
    found, now = {}, ("", "")
    for line in (log or "").splitlines():
        if line.startswith("commit "):
            _, seconds, commit = line.split()
            now = datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"), commit
        elif line.startswith(":"):
            fields, _, path = line.partition("\t")
            key = path, fields.split()[3]
            if set(key[1]) == {"0"} or not path.endswith(("/runs.csv", ".yaml", FILE.name)): continue
            found[key] = min(found.get(key, now), now)
    return found


def _contents(root: Path, blobs: Iterable[str]) -> dict[str, str]:
    "The text of blobs, in one call of git"
    asked = "\n".join(blobs).encode()
    out = git_bytes(root, "cat-file", "--batch", given=asked) or b""
    found, at = {}, 0
    while at < len(out):
        end = out.index(b"\n", at)
        blob, _, size = out[at:end].decode().split()
        found[blob] = out[end + 1:end + 1 + int(size)].decode("utf-8", "replace")
        at = end + 2 + int(size)
    return found


def whole_git(
    root: Path,  # the project's folder
) -> bool:
    "Whether git has the whole history here; a shallow clone has not"
    return git(root, "rev-parse", "--is-shallow-repository") == "false" and git(root, "rev-parse", "HEAD") is not None


def read_history(
    root: Path,  # the project's folder
) -> History | None:
    "The committed file, what git adds to it, and the tables as they are now; None where there is neither file nor git"
    path, history = root / FILE, History(root)
    if not path.exists() and not whole_git(root): return None
    for fact in _facts(path) if path.exists() else (): _take(history, fact)
    if whole_git(root):
        blobs = _blobs(root)
        texts = _contents(root, sorted({blob for _, blob in blobs}))
        for name, blob in blobs:
            if name.endswith("runs.csv"): _add_old_starts(history, texts[blob])
        files = {}
        for (name, blob), when in blobs.items():
            if name.endswith(".yaml"): files.setdefault(name, []).append((*when, texts[blob]))
        add_cards(history, files)
        _first_pins(history, blobs, texts)
    for table in sorted((root / "results").glob("*/runs.csv")):
        try: add_starts(history, read_text(table))
        except (AttributeError, TypeError, ValueError, csv.Error) as error:
            raise error if isinstance(error, FileError) else FileError(f"{table}: {error}: restore it from git") from None
    return history


def _facts(path: Path) -> list[list]:
    "The lines of the file; refused in words where git or a person broke it"
    text = read_text(path)
    if line := conflict_line(text):
        raise FileError(f"{path} holds git's conflict markers (line {line}): keep the lines of both sides, it only grows")
    facts = []
    for number, line in enumerate(text.splitlines(), 1):
        try: facts.append(json.loads(line))
        except ValueError as error:
            raise FileError(f"{path}: line {number} is no JSON ({error}): restore it from git") from None
    return facts


def _first_pins(history: History, blobs: Mapping, texts: Mapping[str, str]) -> None:
    "Pins are those that the file was first committed with; later ones do not count"
    first = min(((when, blob) for (name, blob), when in blobs.items() if name == FILE.as_posix()), default=None)
    if first is None: return
    facts = [json.loads(line) for line in texts[first[1]].splitlines()]
    history.pins = {fact[1]: fact[2] for fact in facts if fact[0] == "pins"}


def _take(history: History, fact: list) -> None:
    "One line of the file"
    kind, name, *rest = fact
    if kind == "card": history.cards.setdefault(name, []).append(rest[0])
    if kind == "pins": history.pins[name] = rest[0]
    if kind == "base": history.bases[name] = rest[0]
    if kind == "arm":
        differs, without, seeds = rest
        params = {n: v for n, v in (history.bases[name] | differs).items() if n not in without}
        history.starts.setdefault(name, {})[tuple(sorted(params.items()))] = {s: t.split() for s, t in seeds.items()}


def as_lines(
    history: History,  # to be written
) -> str:
    "The file: cards and pins by name, then every experiment's base and its arms as differences from it"
    facts = [["card", id, v] for id, versions in sorted(history.cards.items()) for v in versions]
    facts += [["pins", hash, pins] for hash, pins in sorted(history.pins.items())]
    for experiment, arms in sorted(history.starts.items()):
        base = history.bases.setdefault(experiment, dict(min(arms)))
        facts.append(["base", experiment, base])
        for params, seeds in sorted(arms.items()):
            own = dict(params)
            differs = {n: v for n, v in own.items() if base.get(n) != v}
            spoken = {s: " ".join(t) for s, t in sorted(seeds.items())}
            facts.append(["arm", experiment, differs, sorted(set(base) - set(own)), spoken])
    return "".join(json.dumps(f, ensure_ascii=False) + "\n" for f in facts)


def write_history(
    history: History,  # from `read_history`
) -> None:
    "Write the file, which only ever grows"
    text, path = as_lines(history), history.root / FILE
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != old: write_atomic(path, text)
