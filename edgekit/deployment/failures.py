"""What OpenSSH says when it cannot connect, and what to do about it."""

from __future__ import annotations

import re

from edgekit.errors import EdgekitError

#: How ssh's message starts or what it holds -> what happened, and the fix. The first one counts.
KNOWN = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The key of {host} is not the one that your known_hosts holds.",
        "If the device was installed anew, remove its old key with ssh-keygen -R, as ssh says "
        "above, and connect once by hand: {ssh}\nElse do not connect: it may be another machine.",
    ),
    (
        r"Host key verification failed|authenticity of host",
        "The key of {host} is not known here.",
        "Connect once by hand and compare the key: {ssh}",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "There is no host {host}.",
        "Check the name: it may also be an alias of ~/.ssh/config, or an address.",
    ),
    (
        r"Connection refused",
        "{host} refuses the connection.",
        "Start its SSH server (sudo systemctl start ssh), or name its port: --ssh-option Port=2222",
    ),
    (
        r"[Pp]ermission denied|Too many authentication failures",
        "{host} does not let you in.",
        "Check the user's name, and copy your key there: ssh-copy-id {host}",
    ),
    (
        r"timed out|No route to host|Network is unreachable",
        "{host} does not answer.",
        "Check that it is on, in this network, and not behind a firewall: ping it.",
    ),
    (
        r"Bad configuration option|issing argument|garbage at end|Bad owner|[Bb]ad number",
        "ssh does not take these options or this configuration.",
        "Correct --ssh-option or ~/.ssh/config; man ssh_config says what there is.",
    ),
)


def unreachable(host: str, ssh: str, said: str) -> EdgekitError:
    """The error for an ssh that ended with 255.

    Args:
        ssh: the command that connects by hand.
        said: what ssh said on stderr.
    """
    for pattern, what, fix in KNOWN:
        if re.search(pattern, said):
            names = {"host": host, "ssh": ssh}
            return EdgekitError(what.format(**names), said.strip(), fix.format(**names))
    return EdgekitError(
        f"The connection to {host} was lost.",
        said.strip(),
        "Run the same command again: it goes on where this one stopped, and a run that was "
        "started there goes on meanwhile.",
    )
