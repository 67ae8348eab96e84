"""jaxtyping's checks of shapes and types, made once for arguments and results that look alike"""
import functools
import threading
import types

import jaxtyping
import torch

thorough = jaxtyping.jaxtyped


def look(value: object) -> object:
    "All that a declared type can ask of a value: its type, for tensors shape and precision, for lists the same of their items"
    kind = type(value)
    if isinstance(value, torch.Tensor): return kind, value.dtype, value.shape
    if kind in (list, tuple): return kind, *map(look, value[:16])
    if kind is dict: return kind, *map(look, list(value.items())[:16])
    return kind, getattr(value, "shape", None) if kind.__module__ == "numpy" else None


def checked_once(fn=None, *, typechecker=None):
    "In place of `jaxtyped`: arguments and results are checked where none that look alike were before"
    if fn is None: return functools.partial(checked_once, typechecker=typechecker)
    if not isinstance(fn, types.FunctionType): return thorough(fn, typechecker=typechecker)
    ready, seen = threading.local(), set()

    def body(*args, **kwargs):
        return ready.__dict__.pop("result") if "result" in ready.__dict__ else fn(*args, **kwargs)

    own = types.FunctionType(body.__code__, fn.__globals__, fn.__name__, None, body.__closure__)
    checked = thorough(functools.wraps(fn)(own), typechecker=typechecker)

    @functools.wraps(fn)
    def quick(*args, **kwargs):
        __tracebackhide__ = True
        given = look(args), look(kwargs)
        if given not in seen:
            result = checked(*args, **kwargs)
        else:
            result = fn(*args, **kwargs)
            if (given, look(result)) in seen: return result
            ready.result = result
            try: checked(*args, **kwargs)
            finally: ready.__dict__.clear()
        seen.update([given, (given, look(result))])
        return result

    return quick


jaxtyping.jaxtyped = checked_once
