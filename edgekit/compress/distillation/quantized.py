"""Quantized: a distillation whose student is a quantized graph, and whose teacher the float one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgekit.compress.distillation import parallel, trainer
from edgekit.compress.distillation.course import Side, course
from edgekit.compress.distillation.running import check_place, data_of, key_of
from edgekit.compress.distillation.teacher import call_of
from edgekit.errors import EdgekitError
from edgekit.model import Dim
from edgekit.quantize import training

if TYPE_CHECKING:
    from edgekit.compress import Context
    from edgekit.compress.distill import Distill
    from edgekit.model import Graph
    from edgekit.quantize.post_training import Quantized


def train_quantized(options: Distill, graph: Graph, made: Quantized, context: Context) -> Quantized:
    """Quantization-aware training: weights and scales learn to give what the float graph gives.

    Args:
        options: losses compare outputs or labels: a graph has no blocks.
        graph: in fp32, as ``made`` was found on, and of a dynamic batch.
        made: the first scales.
        context: training data, a folder for what is kept, the seed.

    Raises:
        EdgekitError: options that do not hold for a graph, or training has diverged.
    """
    _check(options, graph)
    place, data = parallel.find_place(), data_of(context)
    here = _moved(graph, place.device)
    student = training.trainable(here, made).to(place.device)
    teacher = here.exported.module(check_guards=False)
    key = key_of(options, student, teacher, data, context.seed)

    def groups(lesson: nn.Module) -> list[dict[str, Any]]:
        return [{"weight_decay": 0.0, **g} for g in training.groups(lesson, options.rate)]

    setting = trainer.Setting(options, data, place, context.folder, key, context.seed, groups)
    call = call_of(teacher)
    mine, theirs = Side(student, call_of(student)), Side(teacher, torch.no_grad()(call))
    with course(options, mine, theirs, data, place.device, graph.outputs, context.seed) as phases:
        trainer.train(phases, setting)
    return training.finish(student, graph, made)


def _moved(graph: Graph, device: torch.device) -> Graph:
    """The graph on a device, the constants that it makes among it."""
    if device.type == "cpu":
        return graph
    from torch.export.passes import move_to_device_pass

    return graph.replace(move_to_device_pass(graph.exported, device))


def _check(options: Distill, graph: Graph) -> None:
    check_place(options)
    asked = sorted({"features", "attention"} & options.weights.keys())
    asked += [name for name in ("layerwise_steps", "teacher") if getattr(options, name)]
    if asked:
        raise EdgekitError(
            f"A quantized model cannot be trained with {', '.join(asked)}.",
            "It is a graph without blocks, and learns from the float model that it was made from.",
            f"Leave {', '.join(asked)} out of its options.",
        )
    if any(not isinstance(spec.shape[0], Dim) for spec in graph.inputs):
        raise EdgekitError(
            "A graph of one batch size cannot be trained.",
            f"It takes {', '.join(map(str, graph.inputs))}.",
            "Export the model with_batch('dynamic'), and quantize that.",
        )
