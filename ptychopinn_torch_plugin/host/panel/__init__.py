"""The panels of the reconstructors in the Ptychodus window, and what the window shows of a run.

The only package that imports Qt. :mod:`.layout` says which settings a panel shows and where, :mod:`.fields` are the
widgets of single settings, :mod:`.page` is the panel, :mod:`.factory` is what the host calls.
"""
