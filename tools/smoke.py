"""Few small runs of an experiment in which all that its sweeps ask for occurs"""
from collections.abc import Iterator
from itertools import product
from pathlib import Path

SAME = {"seed", "lr"}  # parameters that lead through the same code whatever their value


def committed(root: Path, files: list[Path]) -> list[Path]:
    "Those of these files that git knows, a user's own left out; all of them where there is no git"
    from refine_nb._project import git
    listed = git(root, "ls-files", "-z")
    names = set((listed or "").split("\0"))
    return [f for f in files if f.relative_to(root).as_posix() in names] if listed else files


def ways(run: dict) -> set:
    "What of a run can lead through code of its own: names, switches, none, 0 and 1; other numbers are alike"
    return {(k, "some" if isinstance(v, (int, float)) and v not in (0, 1) else v) for k, v in run.items() if k not in SAME}


def smoke_sweep(root: Path, notebook: Path) -> dict:
    "Few runs in which every value of every parameter in the notebook's sweep files occurs, sized by the smoke preset"
    from refine_nb.parameters import read_parameters
    from refine_nb.parameters import read_yaml
    declared = read_parameters(notebook)
    small = {"preset": "smoke"} | ({"corpus": "markov"} if "corpus" in declared.types else {})
    sweeps = [read_yaml(file) for file in committed(root, sorted((root / "experiments/sweeps").glob("*.yaml")))]
    entries = [{**sweep.get("defaults", {}), **run} for sweep in sweeps if sweep["notebook"] == notebook.stem for run in sweep["runs"]]
    found = {}  # what can lead through code of its own → the first run with just that
    for entry in entries or [{}]:
        for run in recorded_runs(entry, declared.presets["smoke"]): found.setdefault(frozenset(ways(declared.defaults | run | small)), run | small)
    wanted = frozenset().union(*found)
    return {"notebook": notebook.stem, "runs": packed(covering(found, wanted), declared.defaults, wanted)}


def recorded_runs(entry: dict, sized: dict) -> Iterator[dict]:
    "The runs of an entry, one random seed and learning rate of each, without what the preset sets and what they build on"
    lists = {k: v if isinstance(v, list) else [v] for k, v in entry.items() if k not in sized and not isinstance(v, dict)}
    lists = {k: v[:1] if k in SAME else v for k, v in lists.items()}
    for values in product(*lists.values()): yield dict(zip(lists, values))


def covering(found: dict[frozenset, dict], wanted: frozenset) -> list[dict]:
    "Some of the runs, in which all that is wanted occurs: always the one with the most that is still missing, none that the others make idle"
    chosen, missing = [], wanted
    while missing:
        chosen.append(max(found, key=lambda own: len(own & missing)))
        missing -= chosen[-1]
    for own in list(chosen):
        others = [other for other in chosen if other is not own]
        if wanted <= frozenset().union(*others): chosen = others
    return [found[own] for own in chosen]


def packed(runs: list[dict], defaults: dict, wanted: set) -> list[dict]:
    "Fewer runs with the same values: two become one where no name differs and nothing else that both say, as long as no value is lost"
    out = list(runs)
    for run in runs:
        others = [r for r in out if r is not run]
        named = {k: v for k, v in (defaults | run).items() if isinstance(v, str)}
        for other in [o for o in others if named == {k: v for k, v in (defaults | o).items() if isinstance(v, str)}]:
            both = other | run
            rest = [r for r in others if r is not other] + [both]
            if all(other[k] == v for k, v in run.items() if k in other and k not in SAME) and wanted <= set().union(*(ways(defaults | r) for r in rest)):
                out = rest
                break
    return out
