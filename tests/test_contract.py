"""One contract a room: every file that find.py finds has the names that its room promises."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from edgekit import find, targets
from edgekit.errors import EdgekitError
from edgekit.quantize.sites import OPERATORS
from edgekit.targets.rules import RULES, rules_for


def members(room):
    return [pytest.param(find.find(room, name), id=name) for name in find.names(room)]


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("module", members("converters"))
def test_converters(module):
    assert Path(module.NAME).name == module.NAME
    assert module.RUNTIME is None or module.RUNTIME in find.names("runtimes")
    assert module.ACCEPTS == "graph" or module.ACCEPTS in find.names("converters")
    assert all(isinstance(pip, str) for pip in module.REQUIRES.values())
    assert parameters(module.convert) == ["source", "out", "target"]


@pytest.mark.parametrize("module", members("runtimes"))
def test_runtimes(module, tmp_path):
    assert parameters(module.open) == ["artifact", "threads"]
    assert parameters(module.trace) == ["artifact", "inputs"]
    if hasattr(module, "layers"):
        assert parameters(module.layers) == ["artifact", "inputs", "threads"]
    assert isinstance(module.THREADED, bool)
    assert isinstance(module.unavailable(), str)
    assert isinstance(module.untimed(), str)
    with pytest.raises(EdgekitError):
        module.open(tmp_path / "nothing.here", None)


@pytest.mark.parametrize("module", members("families"))
def test_families(module):
    assert parameters(module.load) == ["name", "options"]


@pytest.mark.parametrize("module", members("rewrites"))
def test_rewrites(module):
    assert parameters(module.rewrite) == ["graph"]


@pytest.mark.parametrize("name", targets.names())
def test_a_targets_formats_are_a_chain(name):
    """Each format is made of the graph or of one that comes before it."""
    made = {"graph"}
    for converter in (find.find("converters", f) for f in targets.load(name).formats):
        assert converter.ACCEPTS in made
        made.add(converter.__name__.rpartition(".")[2])


@pytest.mark.parametrize("name", targets.names())
def test_rules_name_rewrites_that_exist(name):
    rules = rules_for(targets.load(name))
    assert set(rules.rewrites) <= set(find.names("rewrites"))
    assert rules.operators <= set(OPERATORS.values())
    assert rules.why


def test_every_rule_serves_a_device():
    assert set(RULES) == {targets.load(name).runtime for name in targets.names()}


@pytest.mark.parametrize("room", find.ROOMS)
def test_an_unknown_member_names_the_known(room):
    known = find.names(room)
    with pytest.raises(EdgekitError) as caught:
        find.find(room, known[0] + "x")
    assert known[0] in caught.value.fix
    assert all(name in caught.value.why for name in known)


@pytest.mark.parametrize("room", find.ROOMS)
def test_every_member_says_what_it_is(room):
    for name in find.names(room):
        assert len(find.find(room, name).__doc__ or "") > 20
