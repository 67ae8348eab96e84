"""Finds assertions that cannot fail, and checks whose verdict is thrown away"""
import ast
import re
from collections.abc import Iterator

VERDICT = re.compile(r"(allclose|isclose|equal|array_equal|all|any|isinstance|issubclass|callable|hasattr|exists|is_file|is_dir|startswith|endswith"
                     r"|issubset|issuperset|isdisjoint|is_\w+|has_\w+|isfinite|isnan)$")  # calls that answer yes or no
OBJECT = re.compile(r"(approx|raises|warns|compile|partial|array|Path|Mock|MagicMock|print|DataFrame|Series)$")  # calls whose answer's truth says nothing
SAME = re.compile(r"(test_eq|test_close|test_is|assert_close|assert_allclose|assert_equal|assert_array_equal)$")  # comparisons by call


def name_of(node: ast.AST) -> str:
    "The last part of the name of what is called or named: `torch.allclose(…)` → allclose"
    if isinstance(node, ast.Call): return name_of(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def answers(node: ast.AST, verdicts: frozenset[str] = frozenset()) -> bool:
    "Is this expression a yes or a no?"
    if isinstance(node, ast.UnaryOp): return isinstance(node.op, ast.Not)
    if isinstance(node, ast.BoolOp): return any(answers(value, verdicts) for value in node.values)
    if isinstance(node, ast.Call): return bool(VERDICT.match(name_of(node))) or name_of(node) in verdicts
    return isinstance(node, ast.Compare)


def verdict_functions(tree: ast.AST) -> frozenset[str]:
    "Names of functions defined here that return a yes or a no"
    found = set()
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef): continue
        returned = [n.value for n in ast.walk(f) if isinstance(n, ast.Return) and n.value is not None]
        if name_of(f.returns) == "bool" or (returned and all(answers(value) for value in returned)): found.add(f.name)
    return frozenset(found)


BUILTINS = {f.__name__: f for f in (all, any, len, bool, int, float, str, abs, min, max, sum, sorted, isinstance, list, tuple, set, dict)}


def constant_truth(test: ast.AST) -> bool:
    "Is this built of constants and builtins alone, and true?"
    names = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)}
    if names - set(BUILTINS) or any(isinstance(n, ast.Attribute | ast.Lambda | ast.comprehension | ast.NamedExpr | ast.Pow | ast.Mult | ast.LShift) for n in ast.walk(test)): return False
    if isinstance(test, ast.Name): return False
    try: return bool(eval(compile(ast.Expression(test), "<assert>", "eval"), {"__builtins__": BUILTINS}))
    except Exception: return False


def always_true(test: ast.AST, objects: frozenset[str] = frozenset()) -> str:
    "Why this expression is true whatever the code under test does; empty if it can be false"
    return shape_says(test, objects) or ("nothing but constants, and they are true" if constant_truth(test) else "")


def shape_says(test: ast.AST, objects: frozenset[str]) -> str:
    "Why an expression of this shape is always true; empty if it can be false"
    match test:
        case ast.Tuple(elts=[_, *_]): return "a tuple is always true"
        case ast.List(elts=[_, *_]) | ast.Set() | ast.Dict(keys=[_, *_]): return "a literal with members is always true"
        case ast.JoinedStr(): return "an f-string is no condition"
        case ast.Constant(value=value) if value: return "a constant is always true"
        case ast.Lambda() | ast.GeneratorExp(): return "a function or generator is always true, whatever it would return"
        case ast.Name(id=name) if name in objects: return f"{name} is a function, class or module, and so always true"
        case ast.Call() if OBJECT.match(name_of(test)): return f"the truth of {name_of(test)}(…) says nothing"
        case ast.BoolOp(op=ast.Or(), values=values): return next(filter(None, (always_true(v, objects) for v in values)), "")
        case ast.BoolOp(op=ast.And(), values=values):
            reasons = [always_true(v, objects) for v in values]
            return reasons[0] if all(reasons) else ""
        case ast.NamedExpr(value=value): return always_true(value, objects)
        case ast.Compare(left=left, ops=[op], comparators=[right]): return trivial_comparison(left, op, right)
    return ""


def trivial_comparison(left: ast.AST, op: ast.cmpop, right: ast.AST) -> str:
    "Why a comparison cannot fail; empty if it can"
    if isinstance(op, ast.Eq | ast.Is | ast.GtE | ast.LtE) and ast.dump(left) == ast.dump(right) and not has_call(left): return "a value is compared with itself"
    if isinstance(left, ast.Constant | ast.UnaryOp) and type(op) in MIRROR: left, op, right = right, MIRROR[type(op)](), left
    bound = number(right)
    if name_of(left) in ("len", "abs") and isinstance(left, ast.Call) and bound is not None:
        if bound <= 0 and isinstance(op, ast.GtE) or bound < 0 and isinstance(op, ast.Gt | ast.NotEq): return f"{name_of(left)}(…) is never below zero"
    return ""


MIRROR = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.NotEq: ast.NotEq}


def number(node: ast.AST) -> float | None:
    "The number that is written here, or None"
    try: value = ast.literal_eval(node)
    except (ValueError, TypeError): return None
    return value if type(value) in (int, float) else None


def has_call(node: ast.AST) -> bool:
    "Is anything called in here? Two calls of one function may differ: that is how determinism is tested"
    return any(isinstance(n, ast.Call) for n in ast.walk(node))


def is_text(node: ast.AST) -> bool:
    "Does this look like a message?"
    if isinstance(node, ast.BinOp): return is_text(node.left) or is_text(node.right)
    if isinstance(node, ast.Call): return name_of(node) in ("str", "repr", "format", "join", "read_text", "strip", "dumps")
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def objects_of(tree: ast.AST) -> frozenset[str]:
    "Names that hold a function, class or module and nothing else"
    found = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found |= {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return frozenset(found - {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})


def empty_assertions(source: str, verdicts: frozenset[str] = frozenset()) -> Iterator[tuple[int, str]]:
    "Line and reason for every assertion that cannot fail and every verdict thrown away; `verdicts` are further functions that answer yes or no"
    tree = ast.parse(source)
    verdicts, objects = verdicts | verdict_functions(tree), objects_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            if reason := always_true(node.test, objects): yield node.lineno, reason
            elif node.msg is not None and not answers(node.test, verdicts) and not is_text(node.msg):
                yield node.lineno, "the second operand of assert is only its message: was a comparison meant?"
        elif isinstance(node, ast.Expr) and answers(node.value, verdicts):
            yield node.lineno, "a verdict that nothing looks at: assert it"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if name_of(node.value) in ("raises", "warns", "approx"): yield node.lineno, f"{name_of(node.value)}(…) on its own does nothing: use `with` or assert"
            same = SAME.match(name_of(node.value)) and len(node.value.args) > 1 and ast.dump(node.value.args[0]) == ast.dump(node.value.args[1])
            if same and not has_call(node.value.args[0]): yield node.lineno, "a value is compared with itself"
