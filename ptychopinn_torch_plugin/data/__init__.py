"""From files and Ptychodus' inputs to one validated scan, and from the scan to groups of neighbouring positions.

Nothing here imports torch or Lightning; Ptychodus is imported inside the functions that need it.
"""
