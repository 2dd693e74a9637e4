"""The part that Ptychodus loads: entry point, hooks, settings, the three reconstructors and their panels.

Nothing here imports torch or Lightning; Qt is imported in :mod:`.panel` alone.
"""
