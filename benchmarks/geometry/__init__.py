"""Simulated scans of unknown geometry: are orientation, defocus and rotation found, and is the verdict right?"""
