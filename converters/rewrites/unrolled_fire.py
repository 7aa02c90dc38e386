"""unrolled_fire: spiking neurons without a loop, a few operators for each step.

    u[t] = decay s[t-1] + gain x[t],    spike[t] = u[t] >= threshold
    s[t] = u[t] - threshold spike[t]  (soft)   or   u[t] (1 - spike[t])  (hard)

A spike depends on all spikes before it, so two steps are not one of the same kind, and steps cannot
be joined by doubling, as in ``scan_by_doubling``: they are taken one after the other.

1. A known length of ``STEPS`` at most is written out, step by step.
2. One that varies, up to as many, is written out for the most: zeros follow the input, and what
   they add is cut off. A short call costs as much as a long one.
3. A longer one is left as it is: a loop for the runtimes that have one.

In half precision all stays in float32: a difference in rounding can become a spike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.converters.lengths import longest, varies

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.model import Graph

#: The longest that is written out: some nine operators a step, in each layer of neurons. Core ML
#: took minutes to convert five layers of 98 steps.
STEPS = 64


def rewrite(graph: Graph) -> Graph:
    """The graph with every ``edgekit::fire`` written out, where its length allows."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("edgekit.fire.default"):
        *tensors, hard, _, _ = editor.arguments(node)
        most = longest(graph, tensors[0].meta["val"].shape[1])
        if most is not None and most <= STEPS:
            results = editor.trace(unrolled, *tensors, hard, most, like=node, half=frozenset())
            editor.replace_results(node, results)
    return editor.done()


def unrolled(
    x: Tensor,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    state: Tensor,
    hard: bool,
    most: int,
) -> tuple[Tensor, Tensor]:
    """``edgekit.operators.fire`` of ``most`` steps, or of any number up to it."""
    import torch
    from torch.nn import functional

    from edgekit.operators.fire import written_out

    length = x.shape[1]
    if varies(length):
        x = functional.pad(x, (0, 0, 0, most))
    spikes, states = written_out(x, decay, gain, threshold, state, hard, most)
    if not varies(length):
        return torch.stack(spikes, 1), states[-1]
    return torch.stack(spikes, 1)[:, :length], torch.stack(states, 1)[:, :length][:, -1]
