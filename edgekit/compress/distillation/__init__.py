"""Distillation: the machinery of the pass ``distill``.

``course`` puts a lesson together (``lessons``: what a student is asked, ``losses``: how its answer
is judged, ``watch``: what is seen inside a model, ``blocks``: which block stands for which) and
``trainer`` runs it on ``material``, on one device or on many (``parallel``).
"""
