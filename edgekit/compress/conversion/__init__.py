"""Conversion: which activations become spiking units, and how those are fitted to a network.

``places`` finds them in the exported graph; ``fitting`` gives each its thresholds and lets the
layers behind it make up for what it loses.
"""
