"""Sweeps: a grid of models, precisions, targets and batches, each cell kept as it is done."""
