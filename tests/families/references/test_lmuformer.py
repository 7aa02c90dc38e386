"""LMUFormer: what its equations say, causal, and the same whole, in pieces and frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import families
from edgekit.compress.conversion import places
from edgekit.errors import EdgekitError
from edgekit.families import Options, reference
from edgekit.families.references import lmuformer, streaming
from edgekit.families.references.frames import Activation, CausalConv, FrameNorm
from edgekit.model import Model

SMALL = {"features": 5, "classes": 3, "window": 9, "width": 8, "channels": 3, "order": 4}
FRAMES = 21
NEURONS = ("if", "lif", "plif")
#: Lengths of the calls that a clip is cut into.
PIECES = (1, 7, FRAMES)


def made(neuron: str = "", **more: Any) -> lmuformer.LMUFormer:
    """A model whose norms have seen frames."""
    torch.manual_seed(0)
    module = lmuformer.LMUFormer(lmuformer.Config(**SMALL, neuron=neuron, **more)).train()
    for _ in range(20):
        module(torch.randn(4, FRAMES, SMALL["features"]))
    return module.eval()


def clip(batch: int = 2, length: int = FRAMES) -> torch.Tensor:
    return torch.randn(batch, length, SMALL["features"], generator=torch.Generator().manual_seed(1))


def streamed(module: Any, x: torch.Tensor, piece: int) -> torch.Tensor:
    """The outputs at every frame, of calls of ``piece`` frames."""
    states, outputs = streaming.start(module, x), []
    for part in x.split(piece, 1):
        y, states = module.forward_with(part, states)
        outputs.append(y)
    return torch.cat(outputs, 1)


def spikes(module: nn.Module) -> list[torch.Tensor]:
    """What each layer of neurons gives from now on, filled as the module runs."""
    found: list[torch.Tensor] = []
    for each in module.modules():
        if isinstance(each, Activation):
            each.unit.register_forward_hook(lambda *call: found.append(call[2]))
    return found


def test_the_whole_is_what_its_equations_say():
    module, x = made().double(), clip().double()

    def norm(layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
        """Of channels last."""
        scaled = (y - layer.running_mean) / torch.sqrt(layer.running_var + layer.eps)
        return scaled * layer.weight + layer.bias

    def dense(layer: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return norm(layer.norm, y @ layer.linear.weight.t()).relu()

    frames = list(x.unbind(1))
    for embed in module.embed:
        nothing = torch.zeros_like(frames[0])
        before = [nothing, nothing, *frames]
        taps = embed.conv.weight.unbind(2)
        frames = [
            norm(embed.norm, sum(f @ w.t() for f, w in zip(before[t:], taps, strict=False))).relu()
            for t in range(FRAMES)
        ]
    memory, a, b = module.memory, module.memory.A, module.memory.B
    m, r = torch.zeros(2, 4, 3).double(), torch.zeros(2, 8).double()
    for e in frames:
        u = dense(memory.enter, e)
        m = torch.einsum("nm,bmd->bnd", a, m) + torch.einsum("n,bd->bnd", b, u)
        h = dense(memory.leave, torch.cat([m.flatten(1), e], -1))
        g = h + module.mixer.project(dense(module.mixer.expand, h))
        r = 0.9 * r + g / 10
    torch.testing.assert_close(module(x), module.head(r), rtol=0, atol=1e-9)


@pytest.mark.parametrize("piece", PIECES)
def test_a_stream_equals_the_whole_at_every_frame(piece):
    module, x = made(), clip()
    with torch.no_grad():
        outputs = streamed(module, x, piece)
        for length in (1, 2, 10, FRAMES):
            whole = module(x[:, :length])
            torch.testing.assert_close(outputs[:, length - 1], whole, rtol=0, atol=1e-5)
    assert float(outputs.std(1).min()) > 1e-3


@pytest.mark.parametrize("neuron", NEURONS)
def test_neurons_fire_alike_whole_in_pieces_and_frame_by_frame(neuron):
    module, x = made(neuron).double(), clip().double()
    fired = spikes(module)
    with torch.no_grad():
        whole = module(x)
        assert len(fired) == 5
        for layer in fired:
            assert set(layer.unique().tolist()) == {0.0, 1.0}
        for piece in PIECES:
            outputs = streamed(module, x, piece)
            torch.testing.assert_close(outputs[:, -1], whole, rtol=0, atol=1e-12)


def on_a_grid(module: nn.Module) -> None:
    """Every number of a model a multiple of 1/4, and norms that scale by such."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point() and "running_var" not in name:
            value.data = (value * 4).round() / 4
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.eps = 0.0
            norm.running_var.fill_(1 / 16)


@pytest.mark.parametrize("neuron", NEURONS)
def test_where_sums_are_exact_the_forms_are_bit_for_bit_the_same(neuron):
    module = made(neuron, readout=2.0).double()
    on_a_grid(module)
    x = (clip(length=8).double() * 4).round() / 4
    fired = spikes(module)
    with torch.no_grad():
        whole = module(x)
        every = streaming.EveryFrame(module)(x)
        assert torch.equal(every[:, -1], whole)
        assert all(torch.equal(streamed(module, x, piece), every) for piece in (1, 3, 8))
    assert all(0 < float(layer.mean()) < 1 for layer in fired[:5])


def test_nothing_looks_ahead():
    module, x = made(), clip()
    later = x.clone()
    later[:, 12:] += 1
    with torch.no_grad():
        one, other = (streaming.EveryFrame(module)(frames) for frames in (x, later))
    assert torch.equal(one[:, :12], other[:, :12])
    assert not torch.allclose(one[:, 12:], other[:, 12:])


def test_a_norm_learns_from_all_frames_of_a_batch():
    norm, x = FrameNorm(5).train(), clip() * 3 + 2
    y = norm(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.var((0, 1), correction=0), torch.ones(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 1)))


def test_a_causal_convolution_begins_after_zeros():
    conv, x = CausalConv(5, 4, 3), clip().transpose(1, 2)
    with torch.no_grad():
        assert torch.allclose(conv(x), conv(x, torch.zeros(2, 5, 2)), atol=1e-6)
        assert torch.allclose(conv(x[:, :, 2:], x[:, :, :2]), conv(x)[:, :, 2:], atol=1e-6)


@pytest.mark.parametrize("neuron", NEURONS)
def test_it_learns_through_its_neurons(neuron):
    module, x = made(neuron).train(), clip(8)
    labels = torch.arange(8) % 3
    optimiser, losses = torch.optim.Adam(module.parameters(), lr=0.02), []
    for _ in range(20):
        loss = nn.functional.cross_entropy(module(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in module.parameters())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("neuron", ["", "lif"])
def test_states_say_what_is_remembered(neuron):
    model = loaded(neuron=neuron)
    names = [state.name for state in model.states]
    analog = ["conv_0", "conv_1", "memory", "readout"]
    potentials = [f"potential_{each}" for each in ("0", "1", "enter", "leave", "expand")]
    assert sorted(names) == sorted(analog + (potentials if neuron else []))
    started = streaming.start(model.module.module, clip(3))
    _, after = model.module.module.forward_with(clip(3), started)
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in started.items()}


def loaded(**more: Any) -> Model:
    options = Options(random_weights=True, arguments={**SMALL, **more}, mode="stream")
    return families.load("reference/lmuformer", options)


def test_an_exported_stream_carries_its_states():
    model = loaded(neuron="lif").with_batch("dynamic")
    graph = model.export()
    x, states, outputs = clip().numpy(), {}, []
    for start, end in ((0, 5), (5, 6), (6, 17), (17, FRAMES)):
        result = graph.run({"x": x[:, start:end], **states})
        states = {state.name: result[state.output] for state in graph.states}
        outputs.append(result["logits"])
    with torch.no_grad():
        expected = model.module(torch.from_numpy(x)).numpy()
    assert expected.shape == (2, FRAMES, 3)
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, rtol=0, atol=1e-5)
    assert expected.std(1).min() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neuron": "spiky"}, "Unknown neuron 'spiky'"),
        ({"kernel": 1}, "kernel is 1"),
        ({"depth": 0}, "depth is 0"),
        ({"readout": 0.5}, r"readout is 0\.5"),
        ({"neuron": "lif", "tau": 1.0}, r"tau is 1\.0"),
    ],
)
def test_a_size_that_is_no_model_is_refused(arguments, message):
    with pytest.raises(EdgekitError, match=message):
        reference.make("lmuformer", arguments)


def test_the_spiking_pass_finds_the_patch_embedding_and_the_mixer():
    """Its other ReLUs are in front of the memory, of what reads it, and of a sum: analog values."""
    arguments = {**SMALL, "depth": 3}
    model = families.load("reference/lmuformer", Options(random_weights=True, arguments=arguments))
    found = places.find(model, ("activations", "patch_embedding"))
    units = {"embed.0.act.unit", "embed.1.act.unit", "mixer.expand.act.unit"}
    assert found.chosen.keys() == {"embed.0.conv", *units}
