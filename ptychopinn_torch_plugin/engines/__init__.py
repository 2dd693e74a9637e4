"""Refinement: the iterative solver that improves object, probe and positions against the measured counts."""
