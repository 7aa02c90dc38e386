"""Rewrites: one export-friendly lowering per file, each equal to what it replaces."""
