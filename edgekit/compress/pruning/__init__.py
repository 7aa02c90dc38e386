"""Structured pruning: what may go together, how much it matters, and how it is taken out.

A *group* is a width of the model: heads of one attention, hidden channels of one MLP, the width of
the tokens. Its *items* are what may go, one at a time; each lies in *slices* of several tensors,
which go with it.
"""
