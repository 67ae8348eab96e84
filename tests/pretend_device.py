"""A device without hardware that is as strict as a graphics card: what would fail or wait there fails or is counted here.

`with pretend() as seen:` makes the device "pretend". Its tensors hold ordinary ones and compute with them, but an operation that
mixes devices is refused, so is a generator of another device and a way into numpy. `seen` counts operations, and what makes the
host wait for the device, by the line of the library that asked.
"""
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
WAITS = {  # operations whose result has a size, or is a number, that the host has to know
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount", "is_nonzero"}
TAKES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # positions may lie on the host
MOVES = {"copy_", "_to_copy"}


@dataclass
class Seen:
    "What happened on the device"

    operations: int = 0
    waits: Counter = field(default_factory=Counter)  # of the host, by the line that asked
    sent: int = 0  # tensors from the host

    def wait(self, why):
        self.waits[f"{_asked_by()}  {why}"] += 1


current = Seen()


def _asked_by():
    "The line of the library or of the test that is at work"
    frames = [f for f in traceback.extract_stack() if f.filename != __file__]
    ours = [f for f in frames if "refine_nb" in Path(f.filename).parts[-2:]] or [f for f in frames if "/torch/" not in f.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}" if ours else "?"


class DeviceTensor(torch.Tensor):
    "A tensor of the device; `held` is what it computes with"

    @staticmethod
    def __new__(cls, held):
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0))
        self.held = held
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})

    def __array__(self, *args, **kwargs):
        raise TypeError(f"can't convert a {NAME} tensor to numpy: use Tensor.cpu() to copy it to host memory first")

    numpy = __array__

    def untyped_storage(self): return self.held.untyped_storage()

    def tolist(self):
        current.wait("tolist")
        return self.held.detach().tolist()

    def __format__(self, spec): return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __repr__(self): return f"{NAME}({self.held!r})"

    def __deepcopy__(self, memo):
        if not self.is_leaf: raise RuntimeError("only leaves are copied deeply")
        copied = DeviceTensor(self.held.clone())
        if getattr(self, "_is_param", False): copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return copied


class Generator(torch._C.Generator):
    "A generator that knows its device"

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.place = torch.device(device)
        return self

    device = property(lambda self: self.place)


class Module(_DummyBackendModule):
    "What torch asks of a device's module; its random state is that of the host"

    def device_count(self): return 1

    def get_rng_state(self, device=None): return torch.get_rng_state()

    def set_rng_state(self, state, device=None): torch.set_rng_state(state)


class Draws(TorchFunctionMode):
    "Refuses generators of another device; below Python a generator forgets which device it was made for"

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (generator := kwargs.get("generator")) is not None:
            place = kwargs.get("device") or next((x.device for x in args if isinstance(x, torch.Tensor)), "cpu")
            if generator.device.type != torch.device(place).type:
                raise RuntimeError(f"Expected a '{place}' device type for generator but found '{generator.device.type}' ({func.__name__}, {_asked_by()})")
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return func(*args, **kwargs | {"device": "cpu"}).to(NAME)  # torch makes these below Python
        return func(*args, **kwargs)


class Device(TorchDispatchMode):
    "Lets the device make tensors of its own"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})


@lru_cache(None)
def _name(func): return func._schema.name.removeprefix("aten::")


def _tensors(part, found):
    "All tensors in arguments, lists included"
    if isinstance(part, torch.Tensor): found.append(part)
    elif isinstance(part, (list, tuple)):
        for one in part: _tensors(one, found)
    return found


def _held(part):
    if isinstance(part, DeviceTensor): return part.held
    if isinstance(part, (list, tuple)): return type(part)(map(_held, part))
    return part


def _run(func, args, kwargs):
    name, tensors = _name(func), _tensors([*args, *kwargs.values()], [])
    here = [t for t in tensors if isinstance(t, DeviceTensor)]
    place = kwargs.get("device")
    there = bool(here) if place is None else torch.device(place).type == NAME
    if not here and not there: return func(*args, **kwargs)
    if name == "_fused_sdp_choice": return 0  # no fused kernel
    current.operations += 1
    _check(name, args, tensors, here)
    _count(name, args, here, there)
    inner = {key: "cpu" if key == "device" else _held(value) for key, value in kwargs.items()}
    out = func(*map(_held, args), **inner)
    if name == "copy_": return args[0]
    if name.endswith("_") and not name.endswith("__"): return _same(name, args[0], out)
    if "out" in kwargs: return kwargs["out"]
    return tree_map(lambda x: DeviceTensor(x) if there and isinstance(x, torch.Tensor) else x, out)


def _same(name, first, out):
    "What an operation in place returns"
    if isinstance(first, torch.Tensor) and first.shape != first_held(first).shape: raise NotImplementedError(f"{name} changes a shape in place")
    return first if isinstance(out, torch.Tensor) else out


def first_held(tensor): return tensor.held if isinstance(tensor, DeviceTensor) else tensor


def _check(name, args, tensors, here):
    "Refuse tensors of two devices"
    strange = [t for t in tensors if not isinstance(t, DeviceTensor) and t.ndim]
    if not here or not strange or name in MOVES: return
    if name in TAKES and isinstance(args[0], DeviceTensor): return current.wait("positions from the host")
    raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({name}, {_asked_by()})")


def _count(name, args, here, there):
    "Note what makes the host wait"
    if name in WAITS or name == "repeat_interleave" and len(args) < 3 and isinstance(args[-1], torch.Tensor): current.wait(name)
    elif name in TAKES and any(isinstance(i, DeviceTensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]): current.wait("a mask as positions")
    elif name == "_to_copy" and here and not there or name == "copy_" and here and not isinstance(args[0], DeviceTensor): current.wait("to the host")
    elif name == "_to_copy" and not here or name == "copy_" and isinstance(args[0], DeviceTensor) and not isinstance(args[1], DeviceTensor): current.sent += 1


@lru_cache(None)
def _registered():
    "The device's name, which a process learns once"
    _setup_privateuseone_for_python_backend(NAME, Module())


@contextmanager
def pretend():
    "Inside, there is a device; yields what it has seen"
    global current
    _registered()
    current, own = Seen(), (torch.Generator, torch.inference_mode)
    torch.Generator, torch.inference_mode = Generator, torch.no_grad  # what holds another tensor cannot be made in that mode
    try:
        with Device(), Draws(): yield current
    finally: torch.Generator, torch.inference_mode = own
