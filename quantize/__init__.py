"""Quantization: sites, one calibration, one scale table, placed in the exported graph."""
