"""An ONNX graph as a torch module: how ``edgekit.families.onnx`` reads a file.

``reading`` opens and checks the file, ``build`` turns its nodes into steps of a ``module``,
``layers`` gives matrix products and convolutions modules of their own under the names of
``names``, and the rest is one function an operator, in a ``table``.
"""
