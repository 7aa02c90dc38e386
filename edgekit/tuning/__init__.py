"""Tuning: which module hurts when a model is quantized, and which precision each should have."""
