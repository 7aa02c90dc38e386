"""Losses: how far a student's tensors are from its teacher's, one number a sample.

Each takes tensors whose first dimension is the batch and returns (batch,). A batch's loss is their
mean, so that it is the same on one device, on many, and in parts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over positions.

    G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2; T^2 keeps
    the gradients' size.

    Args:
        student, teacher: scores (batch, ..., classes).
        temperature: T.
    """
    wanted = (teacher.float() / temperature).log_softmax(-1)
    given = (student.float() / temperature).log_softmax(-1)
    each = (wanted.exp() * (wanted - given)).sum(-1) * temperature**2
    return by_sample(each, len(student))


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean square of the difference."""
    return by_sample((student.float() - teacher.float()).square(), len(student))


def relative(student: Tensor, teacher: Tensor) -> Tensor:
    """|student - teacher|^2 / |teacher|^2, so that layers of any size of value count alike."""
    teacher = teacher.float()
    wrong = by_sample((student.float() - teacher).square(), len(student))
    return wrong / by_sample(teacher.square(), len(teacher)).clamp_min(1e-8)


def labelled(student: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of scores (batch, classes) and classes (batch,)."""
    return F.cross_entropy(student.float(), labels, reduction="none")


def relations(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], samples: int) -> Tensor:
    """How alike positions are to each other: KL of the softmax of q q', k k' and v v'.

    Widths and numbers of heads may differ. W. Wang et al., "MiniLMv2: Multi-Head Self-Attention
    Relation Distillation", ACL 2021, equations 3-7.

    Args:
        student, teacher: queries, keys and values, each (batch, heads, positions, width).
        samples: in the batch, which windows may have cut up.
    """
    total = torch.zeros(samples, device=student[0].device)
    for mine, theirs in zip(student, teacher, strict=True):
        heads = math.gcd(mine.shape[1], theirs.shape[1])
        wanted, given = relation(theirs, heads), relation(mine, heads)
        total = total + by_sample((wanted.exp() * (wanted - given)).sum(-1), samples)
    return total / len(student)


def relation(values: Tensor, heads: int) -> Tensor:
    """log softmax(x x' / sqrt(width)) of (batch, heads', positions, width') in so many heads."""
    joined = values.float().transpose(1, 2).flatten(2)
    split = joined.reshape(*joined.shape[:2], heads, -1).transpose(1, 2)
    alike = split @ split.transpose(2, 3) / math.sqrt(split.shape[3])
    return alike.log_softmax(-1)


def probabilities(student: Tensor, teacher: Tensor, samples: int) -> Tensor:
    """KL of attention probabilities (batch, heads, queries, keys).

    Where the numbers of heads differ, of their mean over heads.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1), teacher.mean(1)
    least = torch.finfo(torch.float32).tiny
    each = teacher * (teacher.clamp_min(least).log() - student.clamp_min(least).log())
    return by_sample(each.sum(-1), samples)


def by_sample(values: Tensor, samples: int) -> Tensor:
    """The mean of all that belongs to each of so many samples, (samples,)."""
    return values.reshape(samples, -1).mean(1)
