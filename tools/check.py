"""Everything `make test` does, step by step: python tools/check.py [sync] [notebooks] [tests] [experiments] [rows] [pages]"""
import json, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # of the environment that runs this script, so that its tools are the ones called


WAY_OUT = "nbdev-export && nbdev-clean && nbdev-clean --fname experiments"


def call(*command, cwd: Path = ROOT) -> bool:
    "Run one command, its output passing through; True if it ended well"
    name, *rest = map(str, command)
    return subprocess.run([BIN / name, *rest], cwd=cwd, stdin=subprocess.DEVNULL).returncode == 0


def committed(files: list[Path]) -> list[Path]:
    "Those of these files that git knows, a user's own left out; all of them where there is no git"
    from refine_nb._project import git
    listed = git(ROOT, "ls-files", "-z")
    names = set((listed or "").split("\0"))
    return [f for f in files if f.relative_to(ROOT).as_posix() in names] if listed else files


def content(file: Path) -> object:
    "A file for comparison: of a notebook what it holds, without what JupyterLab writes into it on opening"
    if file.suffix != ".ipynb": return file.read_bytes()
    notebook = json.loads(file.read_text(encoding="utf-8"))
    notebook["metadata"].pop("language_info", None)
    notebook["metadata"].get("kernelspec", {}).pop("display_name", None)
    return notebook


def contents(folder: Path) -> dict[str, object]:
    "Every notebook and module below a folder, by its path"
    files = [f for f in folder.rglob("*") if f.suffix in (".ipynb", ".py")]
    return {f.relative_to(folder).as_posix(): content(f) for f in files}


def sync() -> tuple[bool, str]:
    "Exporting and cleaning a copy of the repository changes none of its notebooks and modules"
    with tempfile.TemporaryDirectory() as tmp:
        for folder in ("nbs", "refine_nb", "experiments"):
            shutil.copytree(ROOT / folder, Path(tmp, folder), ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        shutil.copy(ROOT / "pyproject.toml", tmp)
        before = contents(Path(tmp))
        ok = all([call("nbdev-export", cwd=tmp), call("nbdev-clean", cwd=tmp), call("nbdev-clean", "--fname", "experiments", cwd=tmp)])
        after = contents(Path(tmp))
    changed = sorted(f for f in before | after if before.get(f) != after.get(f))
    for f in changed: print(f"  {f} is not what nbdev-export and nbdev-clean make of the notebooks")
    if changed: print(f"  the way out: {WAY_OUT}; then look at the difference")
    return ok and not changed, f"{len(changed)} files differ"


def notebooks() -> tuple[bool, str]:
    "Every cell of nbs/ runs, assertions included; two notebooks at a time"
    return call("nbdev-test", "nbs", "--n-workers", 2, "--timing"), f"{len(list((ROOT / 'nbs').glob('*.ipynb')))} notebooks"


def tests() -> tuple[bool, str]:
    "pytest over tests/, two files at a time"
    report = ROOT / "build/tests.xml"
    report.unlink(missing_ok=True)
    ok = call("python", "-m", "pytest", "tests", "-q", "-rs", "-n", "2", "--dist", "loadfile", "--durations=5", "-p", "no:cacheprovider", f"--junitxml={report}")
    counts = ElementTree.parse(report).getroot()[0].attrib if report.exists() else {"errors": "1"}
    return ok, ", ".join(f"{counts.get(what, 0)} {what}" for what in ("tests", "failures", "errors", "skipped"))


SAME = {"seed", "lr"}  # parameters that lead through the same code whatever their value


def ways(run: dict) -> set:
    "What of a run can lead through code of its own: names, switches, none, 0 and 1; other numbers are alike"
    return {(k, "some" if isinstance(v, (int, float)) and v not in (0, 1) else v) for k, v in run.items() if k not in SAME}


def smoke_sweep(notebook: Path) -> dict:
    "Runs in which every value of every parameter in the notebook's sweep files occurs, on markov if it reads a text, sized by the smoke preset"
    from refine_nb.parameters import read_parameters
    from refine_nb.parameters import read_yaml
    declared = read_parameters(notebook)
    sized, text = declared.presets["smoke"], {"corpus": "markov"} if "corpus" in declared.types else {}
    sweeps = [read_yaml(file) for file in committed(sorted((ROOT / "experiments/sweeps").glob("*.yaml")))]
    entries = [{**sweep.get("defaults", {}), **run} for sweep in sweeps if sweep["notebook"] == notebook.stem for run in sweep["runs"]] or [{}]
    wanted, runs = set(), []
    for entry in entries:
        lists = {k: v if isinstance(v, list) else [v] for k, v in entry.items() if k not in sized and not isinstance(v, dict)}  # no run of this size has what another one could build on
        for i in range(max(map(len, lists.values()), default=1)):  # all lists side by side, the last value of a shorter one again
            run = {k: v[min(i, len(v) - 1)] for k, v in lists.items()} | {"preset": "smoke"} | text
            if not ways(declared.defaults | run) - wanted: continue
            wanted |= ways(declared.defaults | run)
            runs.append(run)
    return {"notebook": notebook.stem, "runs": packed(runs, declared.defaults, wanted)}


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


def experiments() -> tuple[bool, str]:
    "Every experiment notebook in its smoke preset, through the sweep runner, into build/smoke"
    folder, ok, found = ROOT / "build/smoke", True, sorted((ROOT / "experiments").glob("*.ipynb"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in found:
        file = folder / f"{notebook.stem}.yaml"
        file.write_text(yaml.safe_dump(smoke_sweep(notebook)))
        ok &= call("refine-nb", "sweep", file, "--results", folder / "results", "--runs", folder / "runs")
    return ok, f"{len(found)} notebooks"


def rows() -> tuple[bool, str]:
    "No recorded row under a decided claim card is known to come out different today"
    return call("refine-nb", "verify", "--check"), "recorded rows against certificates"


def pages() -> tuple[bool, str]:
    "Every page of the documentation parses; its sidebar is complete and its links lead somewhere"
    return call("python", "tools/pages.py"), "parsed, not rendered"


STEPS = [sync, notebooks, tests, experiments, rows, pages]


def main(names: list[str]) -> int:
    "Run the steps named, or all, each with the time it took; 1 if any failed"
    unknown = set(names) - {step.__name__ for step in STEPS}
    if unknown: sys.exit(f"no step named {', '.join(sorted(unknown))}; there are {', '.join(s.__name__ for s in STEPS)}")
    lines, failed = [], 0
    for step in STEPS:
        if names and step.__name__ not in names: continue
        print(f"\n=== {step.__name__}: {step.__doc__}", flush=True)
        start = time.time()
        ok, note = step()
        failed += not ok
        lines.append(f"{'passed' if ok else 'FAILED'}  {step.__name__:<12} {time.time() - start:6.1f} s  {note}")
        print(lines[-1], flush=True)
    print("\n=== summary", *lines, f"{len(lines) - failed} of {len(lines)} steps passed", sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "1")
    sys.exit(main(sys.argv[1:]))
