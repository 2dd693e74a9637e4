"""Far-field ptychography as pure functions on torch tensors: no data files, no network, no framework.

Conventions are fixed in ``docs/conventions.md``: axes (y, x), unitary transforms, zero frequency at the corner of
every detector array in this package (Ptychodus has it at the centre; ``data/tensors.py`` moves it).
"""
