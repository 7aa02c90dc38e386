"""The two ways edgekit says no.

Both carry three sentences: what happened, why, and how to fix it. The command line
prints them without a traceback and ends with the exception's exit code.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Bad input or a missing requirement (exit code 2).

    Args:
        what: what happened, naming the input at fault.
        why: the cause.
        fix: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(line for line in (what, why, fix) if line))


class CheckFailed(EdgekitError):
    """The work was done, but a check on its result failed (exit code 1)."""

    exit_code = 1
