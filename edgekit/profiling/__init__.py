"""Profiling: where a runtime spends its time, by class of operator and by module of the source."""
