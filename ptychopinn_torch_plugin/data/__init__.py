"""Read files and Ptychodus' inputs into one validated scan, and draw groups of neighbouring positions from it.

Nothing here imports torch or Lightning; Ptychodus is imported inside the functions that need it.
"""
