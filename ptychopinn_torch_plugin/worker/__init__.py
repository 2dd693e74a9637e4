"""Training and inference in a spawned process that dies with the call.

``job`` says what to do and moves arrays through memory-mapped files, ``messages`` are what comes back, ``process`` is
the parent's side and ``child`` the worker's. Nothing here imports torch in the parent.
"""
