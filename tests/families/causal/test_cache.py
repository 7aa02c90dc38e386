"""The cache: what a model may ask of it, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from edgekit.errors import EdgekitError
from edgekit.families.causal.cache import Cache
from edgekit.model import Dim, State
from edgekit.operators.latest import latest

PAST = Dim("past", 0, 8, 16)


def keys(length: int) -> torch.Tensor:
    return torch.arange(2.0 * length).reshape(1, 1, length, 2)


def test_keys_and_values_are_remembered_as_far_as_attention_sees() -> None:
    cache = Cache()
    for layer, window in enumerate((None, 3)):
        cache.update(keys(5), keys(5), layer)
        cache.read(window)
    cache.check_read()
    assert torch.equal(cache.after["key_0"], keys(5))
    assert torch.equal(cache.after["value_1"], keys(5)[:, :, 3:])
    shapes = {state.name: state.shape for state in cache.states(PAST)}
    assert shapes["key_0"] == (1, 1, PAST, 2)
    assert shapes["key_1"] == (1, 1, Dim("window_2", 0, 2, 2), 2)


def test_the_position_is_that_of_complete_keys_else_a_state() -> None:
    complete = Cache({"key_0": keys(2), "key_1": keys(5)}, bounded={"key_0"})
    assert complete.get_seq_length() == 5
    told = Cache({"key_0": keys(2), "position": torch.tensor([7])}, bounded={"key_0"})
    assert int(told.get_seq_length()) == 7
    told.advance(3)
    assert torch.equal(told.after["position"], torch.tensor([10]))

    unknown = Cache()
    unknown.get_seq_length()
    unknown.update(keys(1), keys(1), 0)
    unknown.read(4)
    assert unknown.states(PAST)[-1] == State("position", (1,), "int64")


def test_a_convolution_gets_its_last_inputs_first() -> None:
    x = torch.arange(5.0).reshape(1, 1, 5)
    cache = Cache({"conv_2": torch.tensor([[[7.0, 8.0]]])})
    prefixed = cache.update_conv_state(x, 2, conv_kernel_size=3)
    assert prefixed.flatten().tolist() == [7, 8, 0, 1, 2, 3, 4]
    assert cache.is_prefixed(prefixed)
    assert not cache.is_prefixed(x)
    assert cache.after["conv_2"].flatten().tolist() == [3, 4]


def test_several_recurrences_of_one_layer_have_a_state_each() -> None:
    cache, x = Cache(), torch.zeros(1, 4, 2)
    cache.get_recurrent_state(1)
    for expected in ("scan_1", "scan_1_1"):
        name, state = cache.scan(x, (1, 3, 2))
        cache.after[name] = state
        assert name == expected


def test_what_no_function_of_ours_has_computed_is_refused() -> None:
    cache = Cache()
    with pytest.raises(EdgekitError, match="Layer 3 has a recurrence that edgekit does not know"):
        cache.update_recurrent_state(torch.zeros(1), 3)
    cache.update(keys(1), keys(1), 4)
    with pytest.raises(EdgekitError, match="Layer 4 has an attention of its own"):
        cache.check_read()


@pytest.mark.parametrize("length", [1, 3, 4])
def test_latest_is_all_or_the_last(length: int) -> None:
    assert torch.equal(latest(keys(length), 3), keys(length)[:, :, -3:])
