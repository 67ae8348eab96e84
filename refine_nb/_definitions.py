"""Code in pieces, without its words: what a comment leaves as it is. The notebook `98_verify` shows it.

`91_provenance` tells by it which code a run executes, `98_verify` which pieces of it an arm depends on.
"""
import ast
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ._files import json_digest
from .parameters import code_cells, parse_cell


@dataclass(frozen=True)
class Definition:
    "A piece of a module that is executed, or not, as a whole"
    name: str            # module.function, module.Class.method, module.NAME; the module itself where no name is bound
    first: int           # line where it begins
    function: bool       # whether it is executed by a call, not by an import
    digest: str          # of its code without words and positions
    mentions: frozenset  # identifiers in it
    imported: bool = False  # whether it only makes a name of another module known in its own


def canonical(
    node: object,  # a syntax tree, or a part of one
) -> str:
    "A syntax tree as text, without docstrings, positions and empty fields; the same under every Python"
    if isinstance(node, list): return "[" + ",".join(map(canonical, node)) + "]"
    if not isinstance(node, ast.AST): return f"{type(node).__name__}:{node!r}"
    fields = {k: v for k, v in ast.iter_fields(node) if k not in ("kind", "type_comment", "type_ignores")}
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and ast.get_docstring(node, clean=False) is not None: fields["body"] = node.body[1:]
    constant = isinstance(node, ast.Constant)
    kept = [f"{k}={canonical(v)}" for k, v in fields.items() if constant or v not in (None, [])]
    return f"{type(node).__name__}({','.join(kept)})"


def _identifiers(
    nodes: Iterable[ast.AST],  # pieces of code
) -> frozenset:
    "Names and attributes that appear in code"
    inside = [n for node in nodes for n in ast.walk(node)]
    names = [n.id for n in inside if isinstance(n, ast.Name)]
    return frozenset(names + [n.attr for n in inside if isinstance(n, ast.Attribute)])


_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def _define(name: str, node: ast.AST, parts: list, function: bool) -> Definition:
    "A definition made of these parts"
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return Definition(name, first, function, json_digest([canonical(p) for p in parts]), _identifiers(parts))


def _owner(node: _FUNCTIONS) -> str:
    "`Class.` for a method that is put on a class by `@patch`"
    marked = any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list)
    args = node.args.posonlyargs + node.args.args
    return f"{ast.unparse(args[0].annotation)}." if marked and args and args[0].annotation else ""


def _bound(node: ast.stmt) -> list[str]:
    "The names that a statement of a module binds; none if it may do something else"
    if isinstance(node, ast.Import | ast.ImportFrom): return [(a.asname or a.name).split(".")[0] for a in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [t.id for t in flat] if all(isinstance(t, ast.Name) for t in flat) else []


def _words(node: ast.stmt) -> bool:
    "Whether a statement is a text, and does nothing"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def definitions(
    module: str,  # its name
    text: str,    # its source
) -> list[Definition]:
    "A module in pieces"
    pieces = []
    for node in ast.parse(text).body:
        if isinstance(node, _FUNCTIONS):
            pieces.append(_define(f"{module}.{_owner(node)}{node.name}", node, [node], True))
        elif isinstance(node, ast.ClassDef):
            methods = [s for s in node.body if isinstance(s, _FUNCTIONS)]
            body = [s for s in node.body if s not in methods and not _words(s)]
            pieces += [_define(f"{module}.{node.name}.{m.name}", m, [m], True) for m in methods]
            head = [*node.decorator_list, *node.bases, *node.keywords]
            pieces.append(_define(f"{module}.{node.name}", node, head + body, False))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names: pieces.append(_imported(module, node, alias))
        elif _bound(node) != ["__all__"] and not _words(node):
            for name in _bound(node) or [""]:
                pieces.append(_define(f"{module}.{name}".rstrip("."), node, [node], False))
    return pieces


def _imported(module: str, node: ast.stmt, alias: ast.alias) -> Definition:
    "One name that an import binds"
    where = f"{'.' * getattr(node, 'level', 0)}{getattr(node, 'module', None) or ''}:{alias.name}"
    name = "" if alias.name == "*" else f".{(alias.asname or alias.name).split('.')[0]}"
    return Definition(f"{module}{name}", node.lineno, False, json_digest(where), frozenset([alias.name]), True)



_WATCHES = {"_modidx", "_verify_side"}  # no part of what is verified


class Code:
    "The package and the experiments of a checkout, in pieces"

    def __init__(self,
        root: Path,     # project folder, of today or of an old commit
        package: Path,  # folder of the library
    ):
        self.root, self.package = root, package
        self.pieces = {p.stem: definitions(p.stem, p.read_text(encoding="utf-8")) for p in sorted(package.glob("*.py"))
                       if p.stem not in _WATCHES}
        self.lines = {(module, d.first): d for module, pieces in self.pieces.items() for d in pieces if d.function}
        self.notebooks = {}

    @cached_property
    def digests(self) -> dict[str, str]:
        "name → digest of all pieces that bear it"
        named = defaultdict(list)
        for pieces in self.pieces.values():
            for d in pieces: named[d.name].append(d.digest)
        return {name: json_digest(sorted(parts)) for name, parts in named.items()}

    @cached_property
    def imports(self) -> frozenset:
        "Names that only imports bind"
        pieces = [d for module in self.pieces.values() for d in module]
        return frozenset(d.name for d in pieces if d.imported) - {d.name for d in pieces if not d.imported}

    def cells(self, experiment: str) -> tuple[str, frozenset]:
        "Digest of the code of an experiment, without parameters and report, and the identifiers in it"
        if experiment not in self.notebooks:
            path = self.root / "experiments" / f"{experiment}.ipynb"
            cells = code_cells(path) if path.exists() else []
            trees = [parse_cell(s) for s, tags in cells if not tags & {"parameters", "report"}]
            self.notebooks[experiment] = json_digest([canonical(t) for t in trees]), _identifiers(trees)
        return self.notebooks[experiment]

    def executed(self,
        experiment: str,       # name of the notebook
        entered: list[list],   # [module, first line] of the functions that were called
        modules: list[str],    # those that were imported
    ) -> set[str]:
        "Names of the pieces that a run depends on: what it called, and what the modules bound for that"
        used = {self.lines[m, line] for m, line in map(tuple, entered) if (m, line) in self.lines}
        rest = {d for m in modules for d in self.pieces.get(m, []) if not d.function}
        fresh = used | {d for d in rest if "." not in d.name}
        everywhere = set(self.cells(experiment)[1]) | {n for d in used for n in d.name.split(".")[1:-1]}
        inside, reached = set(), set()  # an import serves its own module only
        while fresh:
            reached |= fresh
            everywhere |= {n for d in fresh for n in d.mentions}
            inside |= {f"{d.name.partition('.')[0]}.{n}" for d in fresh for n in d.mentions}
            named = {d for d in rest if not d.imported and d.name.rpartition(".")[2] in everywhere}
            fresh = (named | {d for d in rest if d.name in inside}) - reached
        return {d.name for d in reached}

    def digest_of(self,
        experiment: str,        # name of the notebook
        names: Iterable[str],   # of pieces
    ) -> str:
        "Digest of the pieces that a run depends on, and of its notebook"
        return json_digest([self.cells(experiment)[0], [[n, self.digests.get(n)] for n in sorted(names)]])
