"""Effort: which accuracy methods a quantization goes through, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.find import find
from edgekit.quantize.calibrate import Range
from edgekit.quantize.methods import Prepare, Round
from edgekit.quantize.methods.adaround import AdaRound
from edgekit.quantize.methods.bias import BiasCorrection
from edgekit.quantize.methods.equalize import Equalize
from edgekit.quantize.methods.gptq import Gptq
from edgekit.quantize.methods.smooth import Smooth
from edgekit.quantize.schemes import QMAX, Effort, Scheme

#: By how much a layer's noise to signal must fall for an input to be divided as the model runs.
_GAINS = {"balanced": 3e-3, "best": 1e-3}


@dataclass(frozen=True)
class Plan:
    """Everything that decides how a graph is quantized.

    Attributes:
        method: the name of the range method.
        effort: the name of the effort.
        prepare, round: the accuracy methods, in order.
    """

    scheme: Scheme
    method: str
    effort: Effort
    range: Range
    prepare: tuple[Prepare, ...]
    round: tuple[Round, ...]


def plan_for(scheme: Scheme, effort: Effort, method: str | None) -> Plan:
    """The plan of an effort.

    quick takes ranges as they come. balanced first moves outliers from activations into weights,
    and corrects the bias that rounding leaves. best also chooses each weight's rounding.

    Args:
        method: of the ranges; None takes the effort's own.

    Raises:
        EdgekitError: no such range method.
    """
    own = {"quick": "minmax", "balanced": "mse", "best": "mse"}[effort]
    name = method or own
    rounding: tuple[Round, ...] = ()
    if effort == "best":
        rounding = (AdaRound(), BiasCorrection())
    elif effort == "balanced":
        rounding = (Gptq(), BiasCorrection()) if scheme.weight == "int4" else (BiasCorrection(),)
    range_ = find("ranges", name).Range()
    return Plan(scheme, name, effort, range_, _preparing(scheme, effort), rounding)


def _preparing(scheme: Scheme, effort: Effort) -> tuple[Prepare, ...]:
    """What is done before calibration, for activations in integers.

    An 8-bit float has nearly the same precision at every magnitude, so that outliers cost it
    little; equal ranges of weights help only where output channels share a scale.
    """
    if effort == "quick" or scheme.activation != "int8":
        return ()
    by_channel = scheme.granularity != "tensor"
    smooth = Smooth(levels=QMAX[scheme.weight], gain=_GAINS[effort], by_channel=by_channel)
    return (Equalize(), smooth)
