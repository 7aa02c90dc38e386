"""Python classes that look like TensorRT's: what a version has, takes and refuses.

`api/VERSION.json` has what the real module says of itself (see read_api.py). A class of the
stand-in is cut to what its version has: members of other versions are not there, arguments are
checked by name and type as pybind11 does, and what it does not model raises NotImplementedError.
Each call, and each property that is set, is a line of JSON in the file FAKE_LOG.
"""
# ruff: noqa: B905 - Python 3.8 has no zip(strict)

import enum
import functools
import json
import operator
import os
import re
from pathlib import Path

VERSION = os.environ.get("FAKE_TENSORRT", "10.3")
API = json.loads(Path(__file__).with_name("api").joinpath(VERSION + ".json").read_text())
MAJOR = int(VERSION.split(".")[0])
#: What a signature may name: our classes and enums, by their names.
KNOWN = {}


class ApiEnum(enum.Enum):
    """Like pybind11's: a number on request, but equal to none."""

    def __int__(self):
        return self.value

    def __index__(self):
        return self.value


def enums():
    """All enums of this version, by name."""
    made = {name: ApiEnum(name, values) for name, values in API["enums"].items()}
    KNOWN.update(made)
    return made


def bound(name):
    """Cut a class to what this version's class of that name has; None where it has none."""

    def wrap(kind):
        members = API["classes"].get(name)
        if members is None:
            return None
        modelled = {key: value for key, value in vars(kind).items() if not key.startswith("_")}
        modelled["__init__"] = vars(kind).get("__init__")
        for member in modelled:
            if member != "__init__" and member not in members:
                delattr(kind, member)
        for member, described in members.items():
            if isinstance(described, list):
                setattr(kind, member, _call(name, member, described, modelled.get(member)))
            else:
                setattr(kind, member, _property(name, member, described, modelled.get(member)))
        kind.__setattr__ = _setter(kind, name, members)
        kind._begins = "__init__" in members
        KNOWN[name] = kind
        return kind

    return wrap


def record(call, arguments):
    """Note a call in the log."""
    if "FAKE_LOG" in os.environ:
        line = json.dumps({"call": call, "arguments": arguments}, default=_shown)
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write(line + "\n")


def _shown(value):
    return value.name if isinstance(value, ApiEnum) else type(value).__name__


def _setter(kind, name, members):
    def set_attribute(self, key, value):
        # A class of the user's own has attributes of its own; pybind11's have none.
        if type(self) is kind and not key.startswith("_") and key not in members:
            raise AttributeError(f"'tensorrt.tensorrt.{name}' object has no attribute {key!r}")
        object.__setattr__(self, key, value)

    return set_attribute


def _call(kind, member, signatures, model):
    parsed = [_parse(signature) for signature in signatures]

    def call(self, *given, **named):
        fitting = (_fit(expected, given, named) for expected in parsed)
        arguments = next((found for found in fitting if found is not None), None)
        if arguments is None:
            shown = ", ".join([*map(repr, given), *(f"{k}={v!r}" for k, v in named.items())])
            raise TypeError(
                f"{kind}.{member}(): incompatible function arguments. It takes "
                f"{' or '.join(f'({s})' for s in signatures)}; invoked with: {shown}"
            )
        record(f"{kind}.{member}", arguments)
        if member == "__init__":
            object.__setattr__(self, "_initialised", True)
            return model(self, **arguments) if model else None
        if model is None:
            raise NotImplementedError(f"the stand-in has no {kind}.{member}")
        return model(self, **arguments)

    return functools.wraps(model)(call) if model else call


def _property(kind, member, described, model):
    def get(self):
        if model is not None:
            return model.fget(self)
        if f"_{member}" not in vars(self):
            raise NotImplementedError(f"the stand-in has no {kind}.{member}")
        return vars(self)[f"_{member}"]

    def put(self, value):
        record(f"{kind}.{member} =", {"value": value})
        if model is not None:
            model.fset(self, value)
        else:
            object.__setattr__(self, f"_{member}", value)

    return property(get if "r" in described else None, put if "w" in described else None)


def _parse(signature):
    """[(name, type, optional)] of an argument list."""
    parts = re.split(r", (?=\w+: )", signature) if signature else []
    matches = [re.match(r"(\w+): (.*?)( = .*)?$", part) for part in parts]
    return [(m.group(1), m.group(2), m.group(3) is not None) for m in matches]


def _fit(expected, given, named):
    """Arguments by name, or None where they do not fit."""
    names = [name for name, _, _ in expected]
    if len(given) > len(names) or set(named) - set(names[len(given) :]):
        return None
    arguments = {**dict(zip(names, given)), **named}
    for name, kind, optional in expected:
        if name not in arguments:
            if not optional:
                return None
        elif not _is(arguments[name], kind):
            return None
    return arguments


def _is(value, kind):
    simple = {"str": str, "bool": bool, "tuple": tuple, "list": list}
    if kind in simple:
        return isinstance(value, simple[kind])
    if kind == "int":
        return _is_index(value)
    if kind == "float":
        return isinstance(value, float) or _is_index(value)
    if kind == "buffer":
        return isinstance(value, (bytes, bytearray, memoryview)) or hasattr(value, "nbytes")
    if kind == "tensorrt.Dims" or kind.startswith("List[int"):
        return isinstance(value, (tuple, list)) and all(_is_index(size) for size in value)
    known = KNOWN.get(kind.rpartition(".")[2])
    if known is None:
        return True
    # pybind11 refuses an object of a subclass whose __init__ did not call that of its base.
    begun = not getattr(known, "_begins", False) or "_initialised" in getattr(value, "__dict__", {})
    return isinstance(value, known) and begun


def _is_index(value):
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, ApiEnum)
