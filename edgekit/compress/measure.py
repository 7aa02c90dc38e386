"""How large a model is, and how far its outputs are from another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.compress.batches import batches, outputs

if TYPE_CHECKING:
    import torch

    from edgekit.data import Dataset
    from edgekit.model import Model


def parameters(module: torch.nn.Module) -> int:
    """Weights of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def operations(model: Model) -> int:
    """Multiply-accumulates of a call's matrix products and convolutions.

    On the device that the weights are on, which may be meta.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tensor = next(model.module.parameters(), None)
    device = tensor.device if tensor is not None else torch.device("cpu")
    inputs = {
        spec.name: torch.zeros(spec.concrete(), dtype=getattr(torch, spec.dtype), device=device)
        for spec in model.inputs
    }
    # Attention in its plain form: the counter does not know the fused one.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, device, FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(**inputs)
    return int(counter.get_total_flops() // 2)


def relative_error(first: Model, second: Model, data: Dataset, size: int = 16) -> float:
    """Squared distance of the second's outputs from the first's, over the first's squares."""
    import torch

    wrong = total = 0.0
    with torch.no_grad():
        for batch in batches(data, size):
            pairs = zip(outputs(first.module, batch), outputs(second.module, batch), strict=True)
            for a, b in pairs:
                wrong += float((a.double() - b.double()).square().sum())
                total += float(a.double().square().sum())
    return wrong / total if total else 0.0
