"""Swaps torch.nn's recurrent modules for ours and back, in models that exist or are being built.

A module of either package is a subclass of :class:`torch.nn.RNNBase` or ``RNNCellBase`` with the
same attributes, and our options have class-level defaults. So a swap changes the module's class
and nothing else: parameters, buffers, hooks, flags, names and references to it stay.

All of this acts on the whole process: do not swap a model, or enter or leave :func:`patched`,
while another thread runs or builds the models concerned.
"""

import contextlib
import copyreg
import functools
import reprlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from rnnfast.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

_TO_OURS = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_OURS.items()}
_NAMES = {ours.__name__ for ours in _TO_TORCH}

# Our options, with the values that make a module compute what torch's does.
_SAME_FUNCTION = {
    "memory": ("full", "recompute"),
    "return_states": (False,),
    "learn_initial_state": (False,),
    "reset_after": (True,),
}
# Those that count at initialisation only.
_INITIAL = {"recurrent_init", "forget_bias"}


@dataclass
class SwapReport:
    """What was done to the recurrent modules of a model.

    Attributes:
        swapped: the modules that were swapped, by their names in ``model.named_modules()`` (``""``
            is the model itself), each with the classes before and after.
        left: the recurrent modules that were not, each with the reason.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} swapped, {len(self.left)} left"]
        for title, modules in (("swapped", self.swapped), ("left", self.left)):
            lines += [f"  {title} {name or '(root)'}: {text}" for name, text in modules.items()]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> SwapReport:
    """Makes every recurrent module of torch.nn in ``model``, itself included, one of ours.

    The modules are changed in place and keep their parameters (optimizers go on), buffers, hooks,
    names and ``state_dict`` keys. Instances of subclasses of :class:`torch.nn.LSTM` and its kin
    stay instances of these, with ``super().forward`` leading to ours; parametrized modules stay
    parametrized. ``isinstance(module, torch.nn.LSTM)`` is false afterwards, which lets
    ``torch.compile`` take the module; ``isinstance(module, torch.nn.RNNBase)`` is true throughout.

    Left as they are: modules that are ours already, scripted and quantized ones, subclasses whose
    names or class layout collide with ours, and other subclasses of :class:`torch.nn.RNNBase`.
    What looks for torch's classes (quantization, scripting, ``fx.symbolic_trace``) wants
    :func:`restore` first.

    Args:
        model: any module.

    Returns:
        What was swapped, and what was left and why; ``str()`` of it is meant to be read.

    Raises:
        TypeError: if ``model`` is not a module.
    """
    return _swap_all(model, _TO_OURS)


def restore(model: nn.Module) -> SwapReport:
    """Makes every recurrent module of ours in ``model``, itself included, one of torch.nn.

    The reverse of :func:`accelerate`, also for modules that were built as ours. Modules with an
    option that changes what is computed and that torch.nn lacks (``reset_after=False``,
    ``return_states=True``, ``learn_initial_state=True``) are left. The other options change no
    result: they are kept and count again after the next :func:`accelerate`.

    Args:
        model: any module.

    Returns:
        What was swapped, and what was left and why; ``str()`` of it is meant to be read.

    Raises:
        TypeError: if ``model`` is not a module.
    """
    report = _swap_all(model, _TO_TORCH)
    for name in report.swapped:
        module = model.get_submodule(name)
        if isinstance(module, nn.RNNBase):
            # cuDNN wants the weights in one piece, which ours need not be.
            module.flatten_parameters()
    return report


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Recurrent modules of torch.nn that are built within are ours: a context or a decorator.

    ``torch.nn.LSTM`` and the five others are our classes within, under every name that torch has
    for them. A class that was taken from torch or derived from torch's earlier (``from torch.nn
    import LSTM``) builds modules as :func:`accelerate` would leave them. Modules built and classes
    derived within stay ours; all else is undone at the end, after exceptions too. Contexts nest.

    ``isinstance(module, torch.nn.LSTM)`` is true of our modules within, where the name is looked up
    at the call, and false afterwards (torch.compile refuses every module of which it is true). So
    call what tells modules apart that way, such as a weight initialiser, within; or let it look for
    :class:`torch.nn.RNNBase`; or build without this context and :func:`accelerate` the result.

    It acts on the whole process, all threads included (only the leave that torch.compile needs
    within is this thread's). Modules of torch.nn built before are not touched and cannot be pickled
    within.
    """
    global _depth
    import torch._dynamo.config

    with _lock:
        if _depth == 0:
            _patch_torch()
        _depth += 1
    try:
        # Dynamo refuses instances of what it finds as torch.nn.LSTM, GRU and RNN, now ours.
        with torch._dynamo.config.patch(allow_rnn=True):
            yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _undo.close()


# A count rather than nested saving, for the contexts of several threads may end in any order.
_lock = threading.Lock()
_depth = 0
_undo = contextlib.ExitStack()


def _patch_torch() -> None:
    for theirs, ours in _TO_OURS.items():
        inits = theirs.__init__, ours.__init__
        _patch(theirs, "__init__", _building(theirs.__init__, *inits, ours))
        _patch(ours, "__init__", _building(ours.__init__, *inits, ours))
        for namespace in (nn, nn.modules, nn.modules.rnn):
            _patch(namespace, theirs.__name__, ours)


def _patch(owner: Any, name: str, value: Any) -> None:
    _undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _building(replaced, theirs_init, ours_init, ours: type):
    """``__init__`` of either class of a pair, in place of ``replaced``.

    A subclass that was derived earlier builds an instance of torch's class, but may call
    ``__init__`` of what it finds as torch.nn.LSTM: it gets its own, and is swapped once built.
    """

    @functools.wraps(replaced)
    def __init__(self, *args, **kwargs):
        init = ours_init if isinstance(self, ours) else theirs_init
        init(self, *args, **kwargs)
        _swap(self, _TO_OURS)

    return __init__


def _swap_all(model: nn.Module, pairs: Mapping[type, type]) -> SwapReport:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    report = SwapReport()
    for name, module in list(model.named_modules()):
        done = _swap(module, pairs)
        if done is not None:
            swapped, text = done
            (report.swapped if swapped else report.left)[name] = text
    return report


def _swap(module: nn.Module, pairs: Mapping[type, type]) -> tuple[bool, str] | None:
    """Swaps ``module`` by ``pairs`` of an old and a new class.

    Returns whether it was swapped, with the classes or the reason; None if it is not recurrent.
    """
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return (False, "scripted, its code is fixed") if module.original_name in _NAMES else None
    if cls.__module__.startswith("torch.ao."):
        return (False, "quantized, rnnfast has no such kernels") if cls.__name__ in _NAMES else None
    for old, new in pairs.items():
        if isinstance(module, new):
            return False, f"already {_label(new)}"
        if isinstance(module, old):
            break
    else:
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            return False, f"{cls.__name__} derives from none of {', '.join(map(_label, pairs))}"
        return None

    for name, values in _SAME_FUNCTION.items():
        value = getattr(module, name, values[0])
        if not (isinstance(value, type(values[0])) and value in values):
            described = f"{name}={reprlib.repr(value)}"
            return False, f"{_label(new)} would not compute the same with {described}"
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    needed = _names_beyond(new, old) - {*dir(old), *_SAME_FUNCTION, *_INITIAL}
    clashes = needed & (own | _names_beyond(cls, old))
    if clashes:
        return False, f"{cls.__name__} and {_label(new)} both define {', '.join(sorted(clashes))}"
    try:
        module.__class__ = _counterpart(cls, old, new)
    except TypeError as error:
        return False, f"{cls.__name__} cannot be based on {_label(new)}: {error}"
    vars(module).pop("_packed_layers", None)  # what rnnfast.prepack keeps, which torch cannot use
    inside = "" if cls in pairs else f" as the base of {cls.__name__}"
    return True, f"{_label(old)} -> {_label(new)}{inside}"


def _label(cls: type) -> str:
    return f"{'torch.nn' if cls in _TO_OURS else 'rnnfast'}.{cls.__name__}"


def _names_beyond(cls: type, base: type) -> set[str]:
    """Names of methods and class attributes that ``cls`` adds to ``base`` or overrides."""
    names = {name for c in cls.__mro__ if c not in base.__mro__ for name in vars(c)}
    return {name for name in names if not name.startswith("__")}


def _counterpart(cls: type, old: type, new: type) -> type:
    """``cls``, a subclass of ``old``, as a subclass of ``new`` instead."""
    if cls is old:
        return new
    if "_replaced" in vars(cls):
        return cls.__bases__[0]
    if cls.__module__ == parametrize.__name__:
        # Made by torch for one parametrized module. It adds properties to this class and removes
        # them, and goes back to the base with the last, so a class of the same build is needed.
        base = _counterpart(cls.__bases__[0], old, new)
        return type(base)(cls.__name__, (base,), dict(vars(cls)))
    for made in type.__subclasses__(cls):
        if vars(made).get("_replaced") is old:
            return made
    kind = type(cls)
    if not issubclass(kind, _Rebased):
        kind = _Rebased if kind is type else type("_Rebased", (_Rebased, kind), {})
        copyreg.pickle(kind, _reduce_class)
    namespace = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return kind(cls.__name__, (cls, new), namespace | {"_replaced": old})


class _Rebased(type):
    """Metaclass of a user's class ``U(old)`` on another base: ``class U(U, new)`` without ``old``.

    ``super()`` in the methods of ``U`` follows the method resolution order of the instance's class,
    and so does ``isinstance``: without ``old`` in it, ``new`` comes next after ``U``, and instances
    are those of ``U`` and ``new`` but not of ``old``.
    """

    def mro(cls) -> list[type]:
        order = super().mro()
        replaced = vars(cls).get("_replaced")
        if replaced is None:
            return order
        kept = cls.__bases__[1].__mro__
        return [c for c in order if c in kept or c not in replaced.__mro__]


def _reduce_class(cls: type) -> str | tuple:
    """How to pickle a class that no module has under its name."""
    if "_replaced" in vars(cls):
        return _counterpart, (cls.__bases__[0], cls._replaced, cls.__bases__[1])
    return cls.__qualname__
