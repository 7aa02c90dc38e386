"""Streaming reference models: which can, and what is exported of them."""

from __future__ import annotations

import pytest

from edgekit import families
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.families.references.streaming import LENGTH, EveryFrame
from edgekit.model import Input

SMALL = {"features": 5, "window": 9, "width": 8, "channels": 3, "order": 4}


def test_a_call_takes_any_number_of_frames_up_to_a_piece():
    options = Options(random_weights=True, arguments=SMALL, mode="stream")
    model = families.load("reference/lmuformer", options)
    assert model.inputs == (Input("x", (1, LENGTH, 5)),)
    assert isinstance(model.module, EveryFrame)
    batches = {state.shape[0] for state in model.with_batch(4).states}
    assert batches == {4}


def test_a_length_that_is_asked_for_is_kept():
    frame = Input("x", (1, 1, 5))
    options = Options(random_weights=True, arguments=SMALL, mode="stream", inputs=(frame,))
    assert families.load("reference/lmuformer", options).inputs == (frame,)


def test_a_model_that_remembers_nothing_is_refused():
    options = Options(random_weights=True, mode="stream")
    with pytest.raises(EdgekitError, match="LMU carries nothing from one call to the next"):
        families.load("reference/lmu", options)
