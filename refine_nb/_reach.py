"""Which definitions of the library a notebook's code can reach, read from source and without importing it.

A name stands for a definition, and a definition for the names in its body: following them from the notebook's cells finds every
top-level definition that may run. Where a name cannot be followed, everything it might stand for counts: the whole class of a
method, the whole module where a module is passed about or looks its own names up, and whatever runs as a module is imported.
`refine_nb.runs.code_hash` says why: a function that is added or mended leaves the runs that never come to it as they are.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

NOT_HASHED = {"__init__", "_modidx", "_reach", "plots", "runs", "sweep", "claims"}  # they watch; they change no number
LOOKS_UP = {"globals", "eval", "exec"}             # may come to any definition of their own module
IMPORTS = {"__import__", "import_module"}          # may come to any module
WHOLE = "*"  # every definition of a module


def canonical(
    node: object,  # a syntax tree, or a part of one
) -> str:
    "A syntax tree as text, without docstrings, positions and empty fields"
    if isinstance(node, list): return "[" + ",".join(map(canonical, node)) + "]"
    if not isinstance(node, ast.AST): return f"{type(node).__name__}:{node!r}"
    fields = {k: v for k, v in ast.iter_fields(node) if k not in ("kind", "type_comment", "type_ignores")}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    kept = [f"{k}={canonical(v)}" for k, v in fields.items() if isinstance(node, ast.Constant) or v not in (None, [])]
    return f"{type(node).__name__}({','.join(kept)})"


def modules(package: Path) -> list[str]:
    "Names of the modules of a package that can change a number"
    return sorted({p.stem for p in package.glob("*.py")} - NOT_HASHED)


def _first_name(node: ast.AST) -> str:
    "`a` of `a`, `a.b`, `a[0].b` and `a(…)`; empty where there is none"
    while not isinstance(node, ast.Name):
        node = getattr(node, "value", None) or getattr(node, "func", None)
        if node is None: return ""
    return node.id


class _Module:
    "What the names of a module, or of a notebook, stand for"

    def __init__(self, tree: ast.Module, package: Path):
        self.defined: dict[str, list[ast.stmt]] = defaultdict(list)  # name → the statements that make it what it is
        self.always: list[ast.stmt] = []                             # statements that run whenever it is imported
        self.imported: dict[str, tuple[str, str | None]] = {}        # name → module of the package, name there (None: the module)
        self.foreign: dict[str, str] = {}                            # name → what it is imported from, outside the package
        self.stars: list[str] = []                                   # modules of the package imported by `*`
        self.dotted: list[str] = []                                  # modules of the package imported as `package.module`
        self.called = {package.name}                                 # names of the package itself
        self.package = package
        for node in ast.walk(tree): self._import(node)
        for node in tree.body: self._place(node)

    def _import(self, node: ast.AST) -> None:
        name = self.package.name
        if isinstance(node, ast.Import):
            for a in node.names:
                inside = a.name.startswith(f"{name}.")
                if inside and a.asname: self.imported[a.asname] = (a.name.split(".")[1], None)
                elif inside: self.dotted.append(a.name.split(".")[1])
                elif a.name == name:
                    self.called.add(a.asname or name)
                    self.dotted += modules(self.package)
                else: self.foreign[a.asname or a.name.split(".")[0]] = a.name
        elif isinstance(node, ast.ImportFrom):
            base = f"{name}.{node.module or ''}".rstrip(".") if node.level == 1 else node.module or ""
            for a in node.names:
                if base == name: self.imported[a.asname or a.name] = (a.name, None)
                elif not base.startswith(f"{name}."): self.foreign[a.asname or a.name] = f"{base}.{a.name}"
                elif a.name == "*": self.stars.append(base.split(".")[1])
                else: self.imported[a.asname or a.name] = (base.split(".")[1], a.name)

    def _place(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant): return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            marks = [_first_name(d) for d in node.decorator_list]
            if "patch" in marks:  # a method of the classes that annotate its first parameter
                takes = node.args.posonlyargs + node.args.args
                return self._to({n.id for n in ast.walk(takes[0].annotation) if isinstance(n, ast.Name)} if takes and takes[0].annotation else set(), node)
            self.defined[node.name].append(node)
            if any(m in self.defined or m in self.imported for m in marks): self.always.append(node)  # our own decorator may keep a list of what it sees
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = [e for t in getattr(node, "targets", None) or [node.target] for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
            if all(isinstance(t, ast.Name) and not isinstance(node, ast.AugAssign) for t in targets):
                for t in targets:
                    if t.id != "__all__": self.defined[t.id].append(node)
            else: self._to({_first_name(t) for t in targets}, node)
        else: self.always.append(node)

    def _to(self, names: set[str], node: ast.stmt) -> None:
        "A statement that changes what is already there goes with it, or runs always where that is not of this module"
        if names and names <= set(self.defined):
            for n in sorted(names): self.defined[n].append(node)
        else: self.always.append(node)


class Library:
    "The modules of a package, each parsed once"

    def __init__(self, package: Path):
        self.package, self.modules = package, {}

    def module(self, name: str) -> _Module | None:
        if name not in self.modules:
            path = self.package / f"{name}.py"
            read = name not in NOT_HASHED and path.exists()
            self.modules[name] = _Module(ast.parse(path.read_text(encoding="utf-8")), self.package) if read else None
        return self.modules[name]

    def stands_for(self, where: _Module, at: str, name: str, seen: frozenset = frozenset()) -> set[tuple[str, str]]:
        "The definitions, (module, name), that a name used in a module may stand for"
        if (at, name) in seen: return set()
        seen, found = seen | {(at, name)}, set()
        if name in where.defined: found.add((at, name))
        if name in LOOKS_UP: found.add((at, WHOLE))
        if name in IMPORTS: found |= {(m, WHOLE) for m in modules(self.package)}
        if name in where.called: found |= {(m, WHOLE) for m in where.dotted}
        module, there = where.imported.get(name, (None, None))
        if module and there is None: found.add((module, WHOLE))
        for source, wanted in [(module, there)] * (there is not None) + [(s, name) for s in where.stars]:
            if (other := self.module(source)) is not None: found |= self.stands_for(other, source, wanted, seen)
        return found

    def uses(self, where: _Module, at: str, nodes: Iterable[ast.AST]) -> dict[str, list[str]]:
        "name → what it stands for, `module.name` or, outside the package, its import; names that are not followed are left out"
        todo, found = list(nodes), {}
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (held := where.imported.get(node.value.id, (None, "")))[1] is None:
                if (other := self.module(held[0])) is not None:  # m.f of a module m: only f
                    found[f"{node.value.id}.{node.attr}"] = self.stands_for(other, held[0], node.attr)
                continue
            if isinstance(node, ast.Attribute) and node.attr in IMPORTS: todo.append(ast.Name(node.attr))
            if isinstance(node, ast.Name):
                if targets := self.stands_for(where, at, node.id): found[node.id] = targets
                elif node.id in where.foreign: found[node.id] = {("import", where.foreign[node.id])}
            todo += ast.iter_child_nodes(node)
        return {name: sorted(".".join(t) for t in targets) for name, targets in sorted(found.items())}

    def imports(self, tree: _Module) -> dict[str, _Module]:
        "Every module that importing leads to, directly or through others"
        todo, found = [tree], {}
        while todo:
            here = todo.pop()
            for name in {*here.stars, *here.dotted, *(m for m, _ in here.imported.values())}:
                if name not in found and (other := self.module(name)) is not None:
                    found[name] = other
                    todo.append(other)
        return found


def reached(
    trees: list[ast.Module],  # syntax trees of a notebook's cells
    package: Path,            # folder of the package
) -> dict[str, list]:  # [the statements' canonical text, what the names in them stand for]
    "`module.name` → its code, for every top-level definition of the package that the cells can reach; `module` → what importing it runs"
    library, start = Library(package), _Module(ast.Module([s for t in trees for s in t.body], []), package)
    found, todo = {}, []

    def add(label: str, where: _Module, at: str, nodes: list[ast.stmt]) -> None:
        names = library.uses(where, at, nodes)
        found[label] = [[canonical(n) for n in nodes], names]
        todo.extend(t for targets in names.values() for t in targets)

    add("", start, "", [s for t in trees for s in t.body])
    for name, module in library.imports(start).items():
        if module.always: add(name, module, name, module.always)
    while todo:
        at, _, name = todo.pop().partition(".")
        module = library.module(at) if at not in ("", "import") else None
        if module is None: continue
        if name == WHOLE:
            todo += [f"{at}.{n}" for n in module.defined]
            if module.always and at not in found: add(at, module, at, module.always)
        elif f"{at}.{name}" not in found: add(f"{at}.{name}", module, at, module.defined[name])
    found.pop("")
    return dict(sorted(found.items()))
