"""What Ptychodus sees: the seam, the settings, the two reconstructors and their panel.

Nothing here imports torch or Lightning; Qt is imported in :mod:`.panel` alone.
"""
