"""Range methods: one file a way to turn what was seen of an activation into its range.

Each file has a frozen dataclass ``Range`` with ``peak(seen, qmax)``: the magnitude that the
largest level stands for. What lies beyond is clipped.
"""
