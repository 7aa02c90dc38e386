"""Causal sequence models of transformers: decoders, state-space models and hybrids of both.

Each file has one job: ``opaque`` and ``attention`` hold what takes the place of transformers' own
functions while a model is traced, ``swap`` puts it there and back, ``cache`` keeps what is
remembered as named tensors, and ``trace`` has the modules that are exported.
"""
