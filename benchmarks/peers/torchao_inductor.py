"""torchao: PT2E with the quantizer for x86, static; and its dynamic W4A8 for linear modules."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torch import nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
from torchao.quantization.granularity import PerGroup
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

warnings.filterwarnings("ignore")

Tensors = dict[str, torch.Tensor]
LINEAR = torch.ops.aten.linear.default
GROUP = 32


def load(folder: Path, variant: str) -> tuple[Any, Tensors]:
    """The exported program, and the samples by input name."""
    samples = dict(np.load(folder / "calibration.npz"))
    tensors = {name: torch.from_numpy(values) for name, values in samples.items()}
    return torch.export.load(folder / "source.pt2"), tensors


def quantize(source: tuple[Any, Tensors], variant: str, out: Path) -> None:
    """Write one exported program, in place of whose weights there are quantized ones."""
    program, samples = source
    example = {name: values[:1] for name, values in samples.items()}
    module = static(program, samples) if variant == "static" else w4a8(program.module())
    drop_unused(module)
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (), example), out)


def drop_unused(module: Any) -> None:
    """Delete the float weights that quantized ones have replaced; torchao leaves them."""
    used = {node.target for node in module.graph.find_nodes(op="get_attr")}
    called = {node.target for node in module.graph.find_nodes(op="call_module")}
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        if name not in used and owner not in called:
            delattr(module.get_submodule(owner), leaf)


def static(program: Any, samples: Tensors) -> Any:
    """PT2E's flow: prepare, run on the samples one by one, convert."""
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.inference_mode():
        for index in range(len(next(iter(samples.values())))):
            prepared(**{name: values[index : index + 1] for name, values in samples.items()})
    return convert_pt2e(prepared)


def w4a8(module: Any) -> Any:
    """int4 weights in groups, activations quantized per token as the model runs.

    torchao does this to ``nn.Linear`` only, so the calls to linear become modules first.
    """
    graph = module.graph
    for number, node in enumerate(graph.find_nodes(op="call_function", target=LINEAR)):
        names = [a.target if a else None for a in (*node.args, None)[1:3]]
        weight, bias = (None if name is None else module.get_parameter(name) for name in names)
        if weight.shape[1] % GROUP:
            continue
        linear = nn.Linear(*reversed(weight.shape), bias=bias is not None)
        linear.weight, linear.bias = weight, bias
        module.add_submodule(f"linear_{number}", linear)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(f"linear_{number}", (node.args[0],)))
        graph.erase_node(node)
    module.recompile()
    config = Int8DynamicActivationIntxWeightConfig(torch.int4, weight_granularity=PerGroup(GROUP))
    quantize_(module, config)
    return module
