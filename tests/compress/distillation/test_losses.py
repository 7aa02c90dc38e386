"""Losses: each is its formula, in float64, and a batch's is the mean of its samples'."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from edgekit.compress.distillation import losses

RANDOM = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(shape, generator=RANDOM)


def test_divergence_is_hintons():
    student, teacher = draw(5, 7), draw(5, 7)
    a, b = (F.log_softmax(each.double() / 3, 1) for each in (student, teacher))
    wanted = 9 * F.kl_div(a, b, reduction="none", log_target=True).sum(1)
    assert torch.allclose(losses.divergence(student, teacher, 3.0).double(), wanted, atol=1e-6)
    assert losses.divergence(teacher, teacher + 2.0).abs().max() < 1e-6


def test_divergence_of_sequences_is_the_mean_over_positions():
    student, teacher = draw(2, 3, 7), draw(2, 3, 7)
    apart = torch.stack([losses.divergence(student[:, i], teacher[:, i]) for i in range(3)])
    assert torch.allclose(losses.divergence(student, teacher), apart.mean(0), atol=1e-6)


def test_relative_does_not_depend_on_the_size_of_values():
    student, teacher = draw(4, 6, 8), draw(4, 6, 8)
    wanted = (student - teacher).double().square().sum((1, 2)) / teacher.double().square().sum(
        (1, 2)
    )
    assert torch.allclose(losses.relative(student, teacher).double(), wanted, atol=1e-5)
    scaled = losses.relative(student * 100, teacher * 100)
    assert torch.allclose(scaled, losses.relative(student, teacher), rtol=1e-4)
    assert losses.relative(student, torch.zeros_like(student)).isfinite().all()


def test_relations_are_minilms():
    """Two heads of width 3 in the teacher, two of width 5 in the student."""
    student = tuple(draw(2, 2, 4, 5) for _ in range(3))
    teacher = tuple(draw(2, 2, 4, 3) for _ in range(3))
    wanted = torch.zeros(2, dtype=torch.float64)
    for mine, theirs in zip(student, teacher, strict=True):
        a, b = (
            (each.double() @ each.double().transpose(2, 3) / math.sqrt(each.shape[3])).softmax(3)
            for each in (mine, theirs)
        )
        wanted += (b * (b / a).log()).sum(3).mean((1, 2)) / 3
    assert torch.allclose(losses.relations(student, teacher, 2).double(), wanted, atol=1e-5)
    assert losses.relations(teacher, teacher, 2).abs().max() < 1e-6


@pytest.mark.parametrize(("mine", "theirs"), [(4, 6), (1, 3), (2, 2)])
def test_relations_of_other_numbers_of_heads(mine, theirs):
    student = tuple(draw(2, mine, 5, 4) for _ in range(3))
    teacher = tuple(draw(2, theirs, 5, 4) for _ in range(3))
    found = losses.relations(student, teacher, 2)
    assert found.shape == (2,)
    assert (found > 0).all()


def test_windows_belong_to_their_sample():
    """Two samples of three windows each."""
    student, teacher = (tuple(draw(6, 2, 4, 4) for _ in range(3)) for _ in range(2))
    both = losses.relations(student, teacher, 2)
    first = losses.relations(tuple(t[:3] for t in student), tuple(t[:3] for t in teacher), 1)
    assert torch.allclose(both[:1], first)


def test_probabilities_are_a_divergence():
    student, teacher = draw(2, 3, 4, 4).softmax(3), draw(2, 3, 4, 4).softmax(3)
    wanted = (teacher.double() * (teacher.double() / student).log()).sum(3).mean((1, 2))
    assert torch.allclose(losses.probabilities(student, teacher, 2).double(), wanted, atol=1e-5)
    fewer = losses.probabilities(student[:, :2], teacher, 2)
    mean = losses.probabilities(student[:, :2].mean(1, True), teacher.mean(1, True), 2)
    assert torch.allclose(fewer, mean)
    masked = torch.eye(4).expand(2, 3, 4, 4)
    assert losses.probabilities(masked, masked, 2).abs().max() < 1e-6


def test_labelled_is_cross_entropy():
    scores, labels = draw(4, 5), torch.tensor([0, 4, 2, 2])
    wanted = -scores.double().log_softmax(1)[torch.arange(4), labels]
    assert torch.allclose(losses.labelled(scores, labels).double(), wanted, atol=1e-6)
