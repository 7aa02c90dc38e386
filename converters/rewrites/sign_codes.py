"""sign_codes: the bits of ``edgekit::sign_codes`` in plain operators, 2 (x >= 0) - 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with every ``edgekit::sign_codes`` written out."""
    from edgekit.edit import Editor
    from edgekit.operators.sign_codes import written_out

    editor = Editor(graph)
    for node in editor.calls("edgekit.sign_codes.default"):
        editor.replace(node, editor.trace(written_out, node.args[0], like=node)[0])
    return editor.done()
