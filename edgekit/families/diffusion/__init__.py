"""Transformers of diffusers, one file a class.

Each file has ``CLASS``, the class's name; ``OUTPUTS``; ``sizes(config)``, what a call is made of
that no tensor says, with its usual values; ``inputs(config, sizes)``; and ``Call(model, sizes)``,
the module of those inputs, with diffusers' own at ``.model``. ``Exported``, where there is one, is
equal to ``Call``, and is what is exported in its place.
"""
