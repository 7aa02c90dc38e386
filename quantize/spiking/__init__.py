"""Spiking: neurons that fire, and how layers of a network become layers of them.

``surrogates`` and ``neurons`` are for networks that are trained as spiking ones; ``thresholds``
finds those of a network that was not (see ``compress/spiking.py``); ``report`` counts spikes.
"""
