"""Turns: who may be at work at once."""

from __future__ import annotations

import fcntl

import pytest

from edgekit.sweeps.turns import building, measuring


def free(lock, how):
    """Whether another process could take the lock in this way."""
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_many_build_and_none_measures_meanwhile(tmp_path):
    lock = tmp_path / "turns"
    with building(lock), building(lock):
        assert free(lock, fcntl.LOCK_SH)
        assert not free(lock, fcntl.LOCK_EX)
    assert free(lock, fcntl.LOCK_EX)


def test_one_measures_alone(tmp_path):
    lock = tmp_path / "turns"
    with measuring(lock):
        assert not free(lock, fcntl.LOCK_SH)
        assert not free(lock, fcntl.LOCK_EX)


@pytest.mark.parametrize("turn", [building, measuring])
def test_a_failure_lets_go(tmp_path, turn):
    lock = tmp_path / "turns"
    with pytest.raises(KeyError), turn(lock):
        raise KeyError
    assert free(lock, fcntl.LOCK_EX)
    with turn(None):
        assert not (tmp_path / "None").exists()
