"""operators: each against its definition step by step, in float64, and as torch wants it."""

from __future__ import annotations

import importlib

import pytest
import torch

from edgekit.operators import causal_attention as attention_file
from edgekit.operators import gated_delta, lmu, ssd

BATCH = 2


def sequential_mamba_scan(x, delta, A, B, C, h):
    outputs = []
    for t in range(x.shape[1]):
        kept = torch.exp(delta[:, t, None] * A.t()) * h
        h = kept + (delta * x)[:, t, None] * B[:, t, :, None]
        outputs.append((C[:, t, :, None] * h).sum(1))
    return torch.stack(outputs, 1), h


def sequential_linear_scan(x, decay, h):
    outputs = []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + x[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1), h


def sequential_ssd(x, decay, B, C, s):
    group, outputs = torch.arange(x.shape[2]) // (x.shape[2] // B.shape[2]), []
    for t in range(x.shape[1]):
        added = torch.einsum("bhn,bhp->bhnp", B[:, t, group], x[:, t])
        s = torch.exp(decay[:, t])[..., None, None] * s + added
        outputs.append(torch.einsum("bhn,bhnp->bhp", C[:, t, group], s))
    return torch.stack(outputs, 1), s


def sequential_gated_delta(query, key, value, decay, beta, s):
    outputs = []
    for t in range(query.shape[1]):
        s = torch.exp(decay[:, t])[..., None, None] * s
        found = torch.einsum("bhk,bhkv->bhv", key[:, t], s)
        change = beta[:, t, :, None] * (value[:, t] - found)
        s = s + torch.einsum("bhk,bhv->bhkv", key[:, t], change)
        outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, t], s))
    return torch.stack(outputs, 1), s


def sequential_lmu(x, A, B, m):
    outputs = []
    for t in range(x.shape[1]):
        m = torch.einsum("nm,bmd->bnd", A, m) + B[:, None] * x[:, t, None]
        outputs.append(m)
    return torch.stack(outputs, 1), m


def sequential_causal_attention(query, key, value, scale, window=None):
    shared, ahead = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]
    y = query.new_zeros(*query.shape[:3], value.shape[3])
    for head in range(query.shape[1]):
        for i in range(query.shape[2]):
            end = i + ahead + 1
            seen = slice(0 if window is None else max(end - window, 0), end)
            k, v = key[:, head // shared, seen], value[:, head // shared, seen]
            scores = torch.einsum("bk,bsk->bs", query[:, head, i], k) * scale
            y[:, head, i] = torch.einsum("bs,bsv->bv", torch.softmax(scores, -1), v)
    return (y,)


def mamba_inputs(length):
    x, delta = torch.randn(BATCH, length, 6), torch.rand(BATCH, length, 6)
    B, C = torch.randn(2, BATCH, length, 4)
    return x, delta, -torch.rand(6, 4) - 0.1, B, C, torch.randn(BATCH, 4, 6)


def linear_inputs(length):
    return torch.randn(BATCH, length, 5), torch.rand(BATCH, length, 5), torch.randn(BATCH, 5)


def ssd_inputs(length):
    B, C = torch.randn(2, BATCH, length, 2, 3)
    x, decay = torch.randn(BATCH, length, 4, 5), -torch.rand(BATCH, length, 4)
    return x, decay, B, C, torch.randn(BATCH, 4, 3, 5)


def delta_inputs(length):
    query, key = torch.nn.functional.normalize(torch.randn(2, BATCH, length, 2, 4), dim=-1)
    value, decay = torch.randn(BATCH, length, 2, 3), -torch.rand(BATCH, length, 2)
    return query, key, value, decay, torch.rand(BATCH, length, 2), torch.randn(BATCH, 2, 4, 3)


def lmu_inputs(length):
    A = torch.linalg.qr(torch.randn(3, 3))[0] * 0.95
    return torch.randn(BATCH, length, 5), A, torch.randn(3), torch.randn(BATCH, 3, 5)


def attention_inputs(length, past=3, window=None):
    query = torch.randn(BATCH, 4, length, 8)
    key = torch.randn(BATCH, 2, length + past, 8)
    return query, key, torch.randn(BATCH, 2, length + past, 5), 0.4, window


def windowed_inputs(length):
    return attention_inputs(length, window=4)


#: name -> operator, definition, inputs of a length, steps at a time
CASES = {
    "mamba_scan": ("mamba_scan", sequential_mamba_scan, mamba_inputs, 4),
    "linear_scan": ("linear_scan", sequential_linear_scan, linear_inputs, 4),
    "ssd": ("ssd", sequential_ssd, ssd_inputs, ssd.CHUNK),
    "gated_delta": ("gated_delta", sequential_gated_delta, delta_inputs, gated_delta.CHUNK),
    "lmu": ("lmu", sequential_lmu, lmu_inputs, lmu.CHUNK),
    "attention": ("causal_attention", sequential_causal_attention, attention_inputs, 8),
    "windowed": ("causal_attention", sequential_causal_attention, windowed_inputs, 8),
}
RECURRENT = [name for name in CASES if name not in ("attention", "windowed")]


def called(name):
    importlib.import_module(f"edgekit.operators.{name}")
    return getattr(torch.ops.edgekit, name).default


def double(values):
    return [v.double() if isinstance(v, torch.Tensor) else v for v in values]


def results(operator, values):
    found = operator(*values)
    return (found,) if isinstance(found, torch.Tensor) else found


def worst(expected, found):
    pairs = zip(expected, found, strict=True)
    return max(float((e - f).abs().max() / e.abs().max()) for e, f in pairs)


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(attention_file, "ROWS", 8)


@pytest.mark.parametrize("name", CASES)
def test_equals_its_definition_at_every_length(name):
    operator, sequential, inputs, chunk = CASES[name]
    for length in (1, 2, chunk - 1, chunk, chunk + 1, 2 * chunk + 3):
        values = inputs(length)
        expected = sequential(*double(values))
        assert worst(expected, results(called(operator), double(values))) < 1e-10
        found = results(called(operator), values)
        assert found[0].dtype == torch.float32
        assert worst(expected, found) < 5e-6


@pytest.mark.parametrize("name", CASES)
def test_torch_finds_nothing_wrong(name):
    operator, _, inputs, chunk = CASES[name]
    for length in (1, chunk + 2):
        torch.library.opcheck(called(operator), inputs(length))


@pytest.mark.parametrize("name", RECURRENT)
def test_half_precision_in_float32_inside(name):
    operator, sequential, inputs, chunk = CASES[name]
    values = [v.half() for v in inputs(chunk + 2)]
    *others, state = values
    y, last = called(operator)(*others, state.float())
    assert (y.dtype, last.dtype) == (torch.float16, torch.float32)
    expected = sequential(*double(values))
    assert worst(expected[:1], (y,)) < 1e-3  # the rounding of the result
    assert worst(expected[1:], (last,)) < 5e-6


@pytest.mark.parametrize("name", ["ssd", "gated_delta"])
def test_a_step_that_forgets_all_leaves_the_others_exact(name):
    operator, sequential, inputs, chunk = CASES[name]
    values = inputs(chunk + 9)
    place = 1 if name == "ssd" else 3
    values[place][:] = -1e-3
    values[place][:, 5::7] = -1e4
    found = results(called(operator), values)
    assert all(torch.isfinite(value).all() for value in found)
    assert worst(sequential(*double(values)), found) < 5e-6


def test_keys_that_repeat():
    values = delta_inputs(2 * gated_delta.CHUNK)
    values[1][:] = values[1][:, :1].clone()
    values[3][:] = 0
    values[4][:] = 0.999
    expected = sequential_gated_delta(*double(values))
    assert worst(expected, called("gated_delta")(*values)) < 5e-6
