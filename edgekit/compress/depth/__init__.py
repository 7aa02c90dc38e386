"""Depth: a model's stacks of blocks, what each block does to its outputs, and doing without."""
