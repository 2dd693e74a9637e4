"""Inspection of raw data: which geometry and probe explain the patterns, how certain that is, and what is wrong."""
