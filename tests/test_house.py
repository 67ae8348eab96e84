"""The house rules. Each test names the file and the line that breaks the rule and, where it is not obvious, the way out"""
import ast
import configparser
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from assertion_lint import empty_assertions, verdict_functions
from conftest import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from smoke import committed

from refine_nb import _ROOMS
from refine_nb.claims import write_claims
from refine_nb.verify import certified
from refine_nb.parameters import read_parameters

COMPONENTS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.ipynb"))
NOTEBOOKS = [*sorted((ROOT / "nbs").glob("*.ipynb")), *sorted((ROOT / "nbs/results").glob("*.ipynb")), *EXPERIMENTS]
SCRIPTS = sorted(f for room in ("refine_nb", "tests", "tools", "benchmarks") for f in (ROOT / room).glob("*.py"))
ROOMS = ("nbs", "refine_nb", "experiments", "results", "tests", "tools", "benchmarks", ".github", ".ci")
LONGEST_BODY, LARGEST_OUTPUT = 40, 1_000_000  # lines; bytes of stored outputs in a notebook
WIDTH = 120  # columns of a line of code
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:home|root|work|Users|mnt|tmp|private|var|opt|workspace|content)/[\w.-]+")
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|X{3}|HAC[K])\b")


def short(path: Path) -> str:
    "A path as a reader knows it"
    return path.relative_to(ROOT).as_posix()


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    "A notebook's code cells"
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def python(cell: nbformat.NotebookNode) -> str:
    "A cell's source as plain Python, magics translated"
    return TransformerManager().transform_cell(cell.source)


def sources() -> list[tuple[str, str]]:
    "(where, Python source) of every cell of every notebook and of every script"
    cells = [(f"{short(path)}#{cell.id}", python(cell)) for path in NOTEBOOKS if path.exists() for cell in code_cells(path)]
    return cells + [(short(path), path.read_text()) for path in SCRIPTS]


def text_files() -> list[Path]:
    "Every file of the repository that people read; not what a user has beside them, nor environment and build folders"
    files = [f for f in ROOT.iterdir() if f.is_file()]
    for room in ROOMS: files += [f for f in (ROOT / room).rglob("*") if f.is_file() and "__pycache__" not in f.parts and ".ipynb_checkpoints" not in f.parts]
    return committed(ROOT, [f for f in files if f.suffix not in (".png", ".svg", ".pyc", ".gz") and short(f) not in ("nbs/nbdev.yml", "nbs/sidebar.yml")])


# The assertions

BAD = ["assert (x == 1, 'message')", "x == 1", "torch.allclose(a, b)", "check_equal(a, b)", "np.isclose(a, b).all()", "not done", "assert f(x), y", "assert len(a), len(b)",
       "assert True", "assert 'text'", "assert f'{x}'", "assert [a, b]", "assert (v > 0 for v in x)", "assert lambda: x", "assert x == 1 or True", "assert x >= x",
       "assert len(x) >= 0", "assert check_equal", "import torch\nassert torch", "pytest.raises(ValueError)", "assert pytest.approx(1.0)", "test_eq(x.y, x.y)", "loss < 2 and acc > 1",
       "assert not []", "assert 1 < 2", "assert all([])", "assert len([1, 2]) == 2", "assert not any([])", "assert len(x) > -1", "assert len(x) >= -1", "assert len(x) != -1", "assert 0 <= len(x)", "assert -1 < len(x)"]
GOOD = ["assert x == 1, 'message'", "assert torch.allclose(a, b)", "assert f(x), f'got {x}'", "assert run.returncode == 0, run.stderr", "assert not found, found", "assert x",
        "mask = x == 1", "assert len(x) > 0", "assert sample(0) == sample(0)", "with pytest.raises(ValueError): f()", "test_eq(f(1), f(1))", "assert rows or other", "f(x)", "assert isinstance(x, int), x",
        "assert 0 < len(x)", "assert len(x) > 1", "assert x > -1", "assert -1 < x < 1", "assert all([x])", "assert not [v for v in x if v]", "assert False, 'not reached'", "assert max([x, 1]) == 1"]
DEFINITION = "def check_equal(a, b):\n    return a == b\n"


@pytest.mark.parametrize("source", BAD)
def test_lint_finds(source):
    assert list(empty_assertions(DEFINITION + source))


@pytest.mark.parametrize("source", GOOD)
def test_lint_passes(source):
    assert not list(empty_assertions(DEFINITION + source))


def test_no_assertion_that_cannot_fail():
    library = frozenset().union(*(verdict_functions(ast.parse(path.read_text())) for path in (ROOT / "refine_nb").glob("*.py")))
    found = [f"{where}:{line} {reason}" for where, source in sources() for line, reason in empty_assertions(source, library)]
    assert not found, "\n".join(found)


# Notebooks: names, order, form

def exported_module(path: Path) -> str:
    "The module a component notebook exports to"
    return re.search(r"^#\|\s*default_exp\s+(\w+)", "\n".join(c.source for c in code_cells(path)), re.M)[1]


def test_numbering():
    numbers = [path.name[:2] for path in COMPONENTS]
    wrong = [short(p) for p in COMPONENTS + EXPERIMENTS if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*\.ipynb", p.name)]
    assert not wrong, f"a notebook is called NN_name.ipynb: {wrong}"
    assert len(set(numbers)) == len(numbers), f"two notebooks share a number: {numbers}"
    misnamed = [short(p) for p in COMPONENTS if exported_module(p) != p.stem[3:]]
    assert not misnamed, f"NN_name.ipynb exports the module `name`: {misnamed}"


def test_every_module_has_its_notebook():
    written = {path.stem for path in (ROOT / "refine_nb").glob("*.py") if not path.name.startswith("_")}
    assert written == {exported_module(path) for path in COMPONENTS}


def imported(source: str) -> set[str]:
    "The modules of the library that this source imports"
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("refine_nb.")}
        if isinstance(node, ast.ImportFrom) and node.module == "refine_nb":
            found |= {_ROOMS.get(a.name, a.name) for a in node.names}  # a name of the front door stands in its room
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("refine_nb."): found.add(node.module.split(".")[1])
    return found


def test_notebooks_import_only_from_lower_numbers():
    number = {exported_module(path): int(path.name[:2]) for path in COMPONENTS}
    found = [f"{short(path)}#{cell.id} imports refine_nb.{name}" for path in COMPONENTS for cell in code_cells(path)
             for name in imported(python(cell)) if not name.startswith("_") and number.get(name, 100) >= int(path.name[:2])]
    assert not found, "\n".join(found)


def test_component_notebooks_begin_and_end_as_they_should():
    found = []
    for path in COMPONENTS:
        first, cells = nbformat.read(path, 4).cells[0].source, code_cells(path)
        if not re.match(r"# \S.*\n+> \S", first): found.append(f"{short(path)}: the first cell is a title (# …) and a subtitle (> …)")
        if "default_exp" not in cells[0].source: found.append(f"{short(path)}: the first code cell says `#| default_exp`")
        if "nbdev_export()" not in cells[-1].source: found.append(f"{short(path)}: the last cell exports")
    assert not found, "\n".join(found)


def test_imports_have_their_own_cells():
    found = []
    for path in COMPONENTS:
        for cell in code_cells(path):
            kinds = {isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(python(cell)).body}
            if len(kinds) > 1 and "nbdev_export()" not in cell.source: found.append(f"{short(path)}#{cell.id}: building the site runs cells with imports, so they hold nothing else")
    assert not found, "\n".join(found)


# Experiments

@pytest.mark.parametrize("path", EXPERIMENTS, ids=short)
def test_experiment_has_one_parameters_cell_of_literals(path):
    declared = read_parameters(path)  # refuses a second cell, a missing tag, and anything but literals
    assert {"preset", "seed"} <= set(declared.defaults), f"`preset` and `seed` are parameters of every experiment: {list(declared.defaults)}"
    assert set(declared.presets) == {"smoke", "cpu", "gpu"}, f"PRESETS has smoke, cpu and gpu: {list(declared.presets)}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=short)
def test_experiment_stores_no_outputs_and_exports_nothing(path):
    kept = [cell.id for cell in code_cells(path) if cell.outputs or cell.execution_count]
    assert not kept, f"outputs stored in {kept}; clear them: jupyter nbconvert --clear-output --inplace {short(path)}"
    exporting = [cell.id for cell in code_cells(path) if re.search(r"^#\|\s*(default_exp|export)", cell.source, re.M)]
    assert not exporting, f"an experiment exports nothing: {exporting}"


# Sizes and words

def long_bodies(source: str, limit: int) -> list[str]:
    "name:lines of every function whose body, docstring left out, is longer than `limit` lines"
    found = []
    for f in ast.walk(ast.parse(source)):
        if not isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef): continue
        body = f.body[1:] if ast.get_docstring(f) and len(f.body) > 1 else f.body
        lines = f.end_lineno - body[0].lineno + 1
        if lines > limit: found.append(f"{f.name}: {lines} lines")
    return found


def test_bodies_are_short():
    found = [f"{where} {long}" for where, source in sources() for long in long_bodies(source, LONGEST_BODY)]
    assert not found, "\n".join(found)
    assert long_bodies("def f():\n" + "    x = 1\n" * 41, LONGEST_BODY) == ["f: 41 lines"]
    assert long_bodies('def f():\n    "one line"\n' + "    x = 1\n" * 40, LONGEST_BODY) == []


def wide(source: str) -> list[str]:
    "line number: beginning of every line that is too long; what a cell says to Quarto stays in one"
    lines = [(n, line) for n, line in enumerate(source.splitlines(), 1) if not line.startswith("#|")]
    return [f"{n}: {line[:60]}" for n, line in lines if len(line) > WIDTH]


def test_lines_fit_the_page():
    cells = [(f"{short(path)}#{cell.id}", cell.source) for path in COMPONENTS for cell in code_cells(path)]
    plain = [f for f in (ROOT / "refine_nb").glob("_*.py") if f.stem != "_modidx"]
    found = [f"{where}:{line}" for where, source in [*cells, *((short(f), f.read_text()) for f in plain)] for line in wide(source)]
    assert not found, "\n".join(found)
    assert wide("x\n" + "x" * 121) and not wide("x" * 120)


def test_nothing_is_imported_or_assigned_for_nothing():
    ruff = [Path(sys.executable).parent / "ruff", "check", "--no-cache", "--force-exclude", "--output-format", "concise"]
    files = [f for f in text_files() if f.suffix in (".py", ".ipynb")]
    done = subprocess.run([*ruff, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stored_outputs_are_small():
    size = {short(p): sum(len(json.dumps(c.outputs)) for c in code_cells(p)) for p in NOTEBOOKS if p.exists()}
    assert not {p: n for p, n in size.items() if n > LARGEST_OUTPUT}


def test_component_notebooks_hold_their_outputs():
    bare = [short(path) for path in COMPONENTS if not any(cell.outputs for cell in code_cells(path))]
    assert not bare, f"no stored outputs; `nbdev-test NB --save`, then `nbdev-clean`: {bare}"
    failed = [f"{short(p)}#{c.id}" for p in NOTEBOOKS if p.exists() for c in code_cells(p) for o in c.outputs if o.output_type == "error"]
    assert not failed, f"a stored output is an uncaught error: {failed}"


def lines_with(pattern: re.Pattern, files: list[Path]) -> list[str]:
    "file:line of every match; the letters of a stored picture are no words"
    return [f"{short(f)}:{n} {m[0]}" for f in files for n, line in enumerate(f.read_text(encoding="utf-8").splitlines(), 1) if '"image/png":' not in line and (m := pattern.search(line))]


def test_every_figure_says_what_it_shows_and_what_is_seen():
    bare = [f"{short(path)}#{cell.id}" for path in COMPONENTS for cell in code_cells(path)
            if ("#| fig-cap:" in cell.source) != ("#| fig-alt:" in cell.source)]
    assert not bare, f"a figure has a caption (its message) and words for those who cannot see it: {bare}"


def test_no_machine_paths():
    found = lines_with(MACHINE_PATH, text_files())
    assert not found, "\n".join(found)
    assert MACHINE_PATH.search("File " + "/ho" + "me/ada/lab.py")


def test_nothing_unfinished_and_nothing_outside_the_repository():
    assert not lines_with(UNFINISHED, text_files())
    neighbour = re.compile(r"\.\./" + "shared")
    assert {line.split(":")[0] for line in lines_with(neighbour, text_files())} <= {".ci/run"}


# One truth

def test_settings_ini_agrees_with_pyproject():
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(ROOT / "settings.ini")
    s, toml = ini["DEFAULT"], tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, nbdev = toml["project"], toml["tool"]["nbdev"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "refine_nb/__init__.py").read_text())[1]
    assert (s["lib_name"], s["repo"], s["lib_path"]) == (project["name"],) * 3
    assert (s["version"], s["description"], s["author"]) == (version, project["description"], project["authors"][0]["name"])
    assert s["keywords"].split() == project["keywords"]
    assert f">={s['min_python']}" == project["requires-python"]
    assert (s["license"], project["license"]) == ("apache2", "Apache-2.0")
    assert s["requirements"].split() == project["dependencies"]
    assert s["dev_requirements"].split() == project["optional-dependencies"]["dev"]
    assert s["console_scripts"].split() == [f"{name}={target}" for name, target in project["scripts"].items()]
    assert [s[key] for key in ("nbs_path", "doc_path", "branch")] == [nbdev[key] for key in ("nbs_path", "doc_path", "branch")]
    assert s["allowed_cell_metadata_keys"].split() == nbdev["allowed_cell_metadata_keys"]
    assert [s.getboolean(key) for key in ("jupyter_hooks", "clean_ids")] == [nbdev[key] for key in ("jupyter_hooks", "clean_ids")]
    assert "nbdev 2.x" in (ROOT / "settings.ini").read_text().splitlines()[0]


def test_constraints_pin_every_dependency():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    pinned = {canonicalize_name(r.name): r for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#") for r in [Requirement(line)]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["dev"]]
    assert not {r.name for r in asked} - set(pinned)
    unfit = [f"{r} / {pinned[r.name].specifier}" for r in asked if not r.specifier.contains(str(pinned[r.name].specifier)[2:])]
    assert not unfit, unfit
    assert not [str(r) for r in pinned.values() if "+" in str(r) or r.marker or r.name == "refine-nb"]


def test_claims_agree_with_the_results():
    differ = write_claims(ROOT, True, *certified(ROOT))[1]
    assert not differ, f"{differ} are not what results/ and the cards give: refine-nb claims"


def test_readme_comes_from_the_index():
    import readme
    text, figures = readme.render()
    assert (ROOT / "README.md").read_text() == text, "README.md is not what nbs/index.ipynb gives: make readme"
    stored = {f.relative_to(ROOT).as_posix(): f.read_bytes() for f in (ROOT / readme.FIGURES).glob("*")}
    assert stored == figures, "the README's figures are not those of nbs/index.ipynb: make readme"


def test_readme_maps_the_rooms():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"^\s*-? ?`([\w./*-]+)`", text[text.index("## The rooms"):].split("\n## ")[0], re.M)
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]
    assert len(named) >= 6, "the map names the rooms, one to a line, each in backticks"
    assert not missing, f"named in the map of the README but not there: {missing}"


def test_readme_lists_every_notebook():
    text = (ROOT / "README.md").read_text()
    missing = [path.name for path in COMPONENTS if f"(nbs/{path.name})" not in text]
    assert not missing, f"not in the reading order of nbs/index.ipynb: {missing}"


# The rooms

PUBLIC, LINES = 12, 450  # names in a room's `__all__`; lines of a module
MORE_NAMES = {}
MORE_LINES = {}  # both may only shrink


def rooms() -> dict[str, ast.Module]:
    "module → its code, for every module that is written or exported"
    files = [f for f in sorted((ROOT / "refine_nb").glob("*.py")) if f.stem not in ("__init__", "_modidx")]
    return {f.stem: ast.parse(f.read_text()) for f in files}


def library_imports(tree: ast.Module) -> set[str]:
    "Modules of the library that a module imports, wherever in it"
    found = {n.module.removeprefix("refine_nb").strip(".") for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module
             and (n.level or n.module.startswith("refine_nb"))}
    return found - {""}


def public(tree: ast.Module) -> int:
    "How many names a module exports"
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    return sum(len(names.elts) for names in lists)


@pytest.mark.parametrize("size, most, exceptions", [
    (lambda name, tree: public(tree), PUBLIC, MORE_NAMES),
    (lambda name, tree: len((ROOT / f"refine_nb/{name}.py").read_text().splitlines()), LINES, MORE_LINES),
], ids=["names", "lines"])
def test_no_room_grows_too_large(size, most, exceptions):
    sizes = {name: size(name, tree) for name, tree in rooms().items()}
    large = {name: n for name, n in sizes.items() if n > exceptions.get(name, most)}
    assert not large, f"more than {most}: {large}"
    shrunk = {name: sizes.get(name, 0) for name, n in exceptions.items() if sizes.get(name, 0) < n}
    assert not shrunk, f"smaller now, so the exceptions shrink too: {shrunk}"


def test_no_room_imports_a_later_one_and_none_in_a_circle():
    number = {re.search(r"#\| default_exp (\w+)", "".join(c.source for c in code_cells(path)))[1]: int(path.stem[:2]) for path in COMPONENTS}
    arrows = {name: library_imports(tree) for name, tree in rooms().items()}
    up = [f"{name} imports {other}" for name, others in arrows.items() for other in others
          if name in number and number.get(other, 0) >= number[name]]
    assert not up
    left = dict(arrows)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free: del left[name]
    assert not left, f"in a circle: {sorted(left)}"
