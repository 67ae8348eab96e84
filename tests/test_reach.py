"""Which library code belongs to a run: what the cells can reach, by every way a name can lead there, and nothing else"""
import ast, sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from refine_nb._reach import NOT_HASHED, _Module, canonical, reached
from refine_nb.runs import code_hash
from test_experiments import thought_rl
from toy_project import write_notebook

LIBRARY = {
    "__init__.py": "v = 1\n",
    "model.py": '''
"The model"
import math
import numpy as np
from fastcore.basics import patch
from .maths import BASE, add as plus
from . import extra
from .plots import draw
from .marks import seen

__all__ = ["f"]
SIZES = {"small": 1}
SIZES["large"] = 2
LEFT, RIGHT = 1, 2

def f(x):
    "Doc"
    return plus(draw(x), 1)

def g(x, step=LEFT): return f(x) * math.pi * step

def h(x): return extra.used(x)

def late(x):
    from .maths import power
    return power(x)

def loop(n): return turn(n)
def turn(n): return loop(n - 1) if n else SIZES["small"]

@seen
def kept(x): return x + 3

class Net:
    "A class"
    def run(self, x): return self.deep(x)

class Wide(Net): pass

@patch
def deep(self: Net, x): return other(x)

def other(x): return x
Net.width = 4
Net.depth: int = 5

def by_name(name): return globals()[name]
''',
    "maths.py": "import os\nBASE = 2\ndef add(a, b): return a + b\ndef power(a): return BASE ** a\nif os.name: BASE_OF = 3\n",
    "extra.py": "from .maths import *\ndef used(x): return power(x)\ndef spare(x): return x\n",
    "marks.py": "def seen(f): return f\ndef unseen(f): return f\n",
    "plots.py": "def draw(x): return x\n",
    "here.py": "from .there import *\ndef one(x): return two(x)\n",
    "there.py": "from .here import *\nfrom .extra import power\ndef two(x): return x\n",
    "unused.py": "x = 1\n",
}
F, G, H, NET, WIDE = ("from lib.model import f\nf(1)", "from lib.model import g\ng(1)", "from lib.model import h\nh(1)", "from lib.model import Net\nNet().run(1)", "from lib.model import *\nWide()")
EDITS = [
    ("words", F, "model.py", '"Doc"', '"Another text"  # and why', False),
    ("its own body", F, "model.py", "plus(draw(x), 1)", "plus(draw(x), 2)", True),
    ("what it calls, under another name", F, "maths.py", "a + b", "a - b", True),
    ("which name it calls", F, "model.py", "add as plus", "power as plus", True),
    ("what only watches", F, "plots.py", "return x", "return 2 * x", False),
    ("a module nobody imports", F, "unused.py", "x = 1", "x = 2", False),
    ("the package", F, "__init__.py", "v = 1", "v = 2", False),
    ("a neighbour that calls it", F, "model.py", "math.pi", "math.e", False),
    ("a new neighbour", F, "model.py", "def loop", "def fresh(x): return 7\n\ndef loop", False),
    ("what is exported", F, "model.py", '["f"]', '["f", "g"]', False),
    ("a neighbour of what it calls", F, "maths.py", "BASE ** a", "BASE * a", False),
    ("what runs at import, far away", F, "maths.py", "BASE_OF = 3", "BASE_OF = 4", True),
    ("what a decorator of ours has seen", F, "model.py", "x + 3", "x + 4", True),
    ("that decorator", F, "marks.py", "def seen(f): return f", "def seen(f): return None", True),
    ("another decorator", F, "marks.py", "def unseen(f): return f", "def unseen(f): return None", False),
    ("a caller, from there", G, "model.py", "math.pi", "math.e", True),
    ("where a foreign name is from", G, "model.py", "import math\n", "import cmath as math\n", True),
    ("a foreign name nobody uses here", G, "model.py", "import numpy as np", "import torch as np", False),
    ("a default", G, "model.py", "LEFT, RIGHT = 1, 2", "LEFT, RIGHT = 3, 2", True),
    ("two calls away, through a module and a star", H, "maths.py", "BASE ** a", "BASE * a", True),
    ("a constant three steps away", H, "maths.py", "BASE = 2", "BASE = 3", True),
    ("what a module has beside it", H, "extra.py", "def spare(x): return x", "def spare(x): return 0", False),
    ("what is imported late", "from lib import model\nmodel.late(1)", "maths.py", "BASE ** a", "BASE * a", True),
    ("late, by nobody", F, "model.py", "return power(x)", "return power(0)", False),
    ("round in a circle", "from lib.model import loop\nloop(1)", "model.py", 'SIZES["large"] = 2', 'SIZES["large"] = 3', True),
    ("a method", NET, "model.py", "self.deep(x)", "self.deep(0)", True),
    ("a method put on later", NET, "model.py", "return other(x)", "return other(0)", True),
    ("what that method calls", NET, "model.py", "def other(x): return x", "def other(x): return 0", True),
    ("an attribute put on later", NET, "model.py", "Net.width = 4", "Net.width = 6", True),
    ("an annotated one", NET, "model.py", "Net.depth: int = 5", "Net.depth: int = 6", True),
    ("methods of a class nobody names", F, "model.py", "return other(x)", "return other(0)", False),
    ("a base class", WIDE, "model.py", "self.deep(x)", "self.deep(0)", True),
    ("a subclass", NET, "model.py", "class Wide(Net): pass", "class Wide(Net): wider = 1", False),
    ("everything, through a module passed about", "import lib.model as m\nprint(m)", "model.py", "math.pi", "math.e", True),
    ("one thing of a module", "import lib.model as m\nm.f(1)", "model.py", "math.pi", "math.e", False),
    ("everything, under its full name", "import lib.model\nlib.model.f(1)", "model.py", "math.pi", "math.e", True),
    ("everything, through the package", "import lib\nlib.model.f(1)", "model.py", "math.pi", "math.e", True),
    ("everything, through the package by another name", "import lib as l\nl.model.f(1)", "model.py", "math.pi", "math.e", True),
    ("everything, through a name made up at run time", "import importlib\nimportlib.import_module('lib.' + 'model').f(1)", "model.py", "math.pi", "math.e", True),
    ("what runs at an import at run time", "from importlib import import_module\nimport_module('lib.maths')", "maths.py", "BASE_OF = 3", "BASE_OF = 4", True),
    ("everything, where names are looked up", "from lib.model import by_name\nby_name('g')", "model.py", "math.pi", "math.e", True),
    ("everything, but not what is exported", "import lib.model as m\nprint(m)", "model.py", '["f"]', '["f", "g"]', False),
    ("a pair of constants nobody uses here", F, "model.py", "LEFT, RIGHT = 1, 2", "LEFT, RIGHT = 3, 2", False),
    ("what is handed on from a module to the next", "from lib.here import power\npower(2)", "maths.py", "BASE ** a", "BASE * a", True),
    ("modules that import one another", "from lib.there import one\none(2)", "there.py", "return x", "return 0", True),
    ("only imported, not used", "from lib import extra", "extra.py", "power(x)", "power(0)", False),
]


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "lib"
    folder.mkdir()
    for name, text in LIBRARY.items(): (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("what, cell, file, old, new, changes", EDITS, ids=[e[0] for e in EDITS])
def test_an_edit_changes_the_runs_that_can_come_to_it(tmp_path, package, what, cell, file, old, new, changes):
    notebook = write_notebook(tmp_path / "n.ipynb", [("%matplotlib inline\n" + cell, [])])
    before = code_hash(notebook, package)
    assert LIBRARY[file].count(old) == 1
    (package / file).write_text(LIBRARY[file].replace(old, new))
    assert (code_hash(notebook, package) != before) is changes


def test_a_function_inside_a_cell_leads_on(package):
    cells = [ast.parse("def late():\n    from lib.maths import power\n    return power(2)"), ast.parse("late()")]
    assert set(reached(cells, package)) == {"maths", "maths.BASE", "maths.power"}
    assert set(reached(cells[1:], package)) == set()


def test_canonical_text_is_the_same_under_every_python():
    source = "class A[T](B): x: int = 1" if sys.version_info >= (3, 12) else "class A(B): x: int = 1"
    assert canonical(ast.parse("def f(a, *, k=None): return f'{a!r}' if k is None else b''")) == (
        "Module(body=[FunctionDef(name=str:'f',args=arguments(args=[arg(arg=str:'a')],kwonlyargs=[arg(arg=str:'k')],kw_defaults=[Constant(value=NoneType:None)]),"
        "body=[Return(value=IfExp(test=Compare(left=Name(id=str:'k',ctx=Load()),ops=[Is()],comparators=[Constant(value=NoneType:None)]),"
        "body=JoinedStr(values=[FormattedValue(value=Name(id=str:'a',ctx=Load()),conversion=int:114)]),orelse=Constant(value=bytes:b'')))])])")
    assert canonical(ast.parse(source)).startswith("Module(body=[ClassDef(name=str:'A'")


# --- against what really runs ----------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "refine_nb"


@contextmanager
def calls():
    "Every function of the library that is entered meanwhile: {(module, line where its code begins)}"
    entered, before = set(), sys.getprofile()
    def enter(frame, event, arg):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == PACKAGE: entered.add((path.stem, frame.f_code.co_firstlineno))
    sys.setprofile(enter)
    try: yield entered
    finally: sys.setprofile(before)


def definitions(module):
    "line → `module.name` of the top-level definitions it belongs to, for every line of a module"
    source, owners = _Module(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")), PACKAGE), defaultdict(set)
    for name, statements in source.defined.items():
        for s in statements:
            first = min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", []))])
            for line in range(first, s.end_lineno + 1): owners[line].add(f"{module}.{name}")
    return owners


def test_whatever_runs_was_reached(tmp_path, monkeypatch):
    "Of an experiment that trains a warm start: no function of the library is entered that its cells do not reach"
    with calls() as entered: thought_rl(tmp_path, monkeypatch, warm_steps=20)
    cells = [c.source for c in nbformat.read(ROOT / "experiments/16_thought_rl.ipynb", 4).cells if c.cell_type == "code"]
    found = set(reached([ast.parse(source) for source in cells], PACKAGE))
    lines = {module: definitions(module) for module in {m for m, _ in entered} - NOT_HASHED}
    owned = [lines[m][line] for m, line in entered if m in lines and lines[m][line]]
    assert len(owned) > 50
    assert not [sorted(owners) for owners in owned if not owners & found]
