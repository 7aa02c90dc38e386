"""nir: a spiking network to one NIR file, which toolchains of neuromorphic chips read.

NIR is the Neuromorphic Intermediate Representation (Pedersen et al., "Neuromorphic intermediate
representation: A unified instruction set for interoperable brain-inspired computing", Nature
Communications 15, 8122, 2024): nodes of known equations, and edges that add up where they meet.
It holds linears, convolutions, average pooling, flattening, sums and integrate-and-fire neurons;
a model with anything else, such as attention, LayerNorm or a recurrence, is refused.

What NIR says, and what the file's metadata add to it:

1. NIR's time is continuous. The file is of steps, ``dt`` = 1: a potential takes Euler steps, and a
   node reads what others give in the same step.
2. NIR's IF and LIF are reset to ``v_reset``. Neurons that are (``edgekit::fire``, hard) are held as
   they are. Those whose threshold is taken off, ``reset`` = "subtract", need a toolchain that
   does that: NIR does not tell the two apart.
3. They fire above ``v_threshold``, and ours at it: it is written one float lower.
4. LIF: tau = 1 / (1 - decay), r = gain tau, v_leak = 0. A decay of 1 is an IF with r = gain.
5. A unit (``edgekit::qcfs``) of T steps is an IF of its threshold that starts from half of it,
   ``v_start``; one with a sign is two, of x and -x. They take the model's input as a current,
   ``input`` = "constant", for ``steps`` = T, and the output is the mean over these, ``decode``.
   A spike stands for ``amplitude`` = T scale, which the weights behind it have taken up.
6. Neurons along a sequence take its positions one by one, ``input`` = "sequence".

A unit behind no other is exact: it counts to its level. One behind units gets their spikes as they
come, where the model gives it their count: it may fire too early, or too late. That fades as
steps grow, and verification says whether there are enough.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.converters import Artifact
from edgekit.errors import EdgekitError
from edgekit.progress import say
from edgekit.targets import Target

if TYPE_CHECKING:
    from edgekit.converters.nir_network import Network
    from edgekit.model import Graph

NAME = "model.nir"
RUNTIME = "nir"
ACCEPTS = "graph"
REQUIRES = {"nir": "nir", "h5py": "h5py"}


def convert(source: Graph, out: Path, target: Target) -> Artifact:
    """Write ``out``.

    Raises:
        EdgekitError: NIR has no node for some of what the model computes (all of it is named, with
            its modules), the model has no neurons, or its neurons do not fit one file.
    """
    import nir

    from edgekit.converters.nir_nodes import network_of

    network = network_of(source)
    graph = _graph(network)
    if network.depth > 1 and not network.sequence:
        say(
            f"Up to {network.depth} spiking units are in series. In NIR all fire at once, on "
            "currents that vary: nearer to the model with more steps."
        )
    with files.atomic(out) as room:
        nir.write(room, graph)
    nodes = Counter(type(node).__name__ for node in graph.nodes.values())
    details = {"nodes": dict(nodes.most_common()), "depth": network.depth, **network.timing}
    return Artifact("nir", out, details)


def _graph(network: Network) -> Any:
    """The network as NIR's own object, of types that agree with the model's shapes.

    Raises:
        EdgekitError: NIR infers another shape, as for a kernel that is not square.
    """
    import nir

    try:
        graph = nir.NIRGraph(network.nodes, network.edges, {"dt": 1.0, **network.timing})
    except ValueError as error:
        raise EdgekitError(
            "The model's shapes are not those that NIR infers.",
            str(error),
            "NIR takes convolutions whose kernels are square.",
        ) from error
    return graph
