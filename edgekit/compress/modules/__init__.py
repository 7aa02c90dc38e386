"""Modules that passes put in the place of a source's, one file each.

A file defines ``make(**arguments) -> Module``; the module has ``arguments()``, which gives them
back as JSON values. Its own children are made by ``make``; those that it takes over from the source
are put in by the pass, and keep their origins.
"""
