"""Training and reconstruction in a spawned process, which may wait for the next call of the host.

:mod:`.job` says what to do and moves arrays through memory-mapped files, :mod:`.messages` are what comes back,
:mod:`.parent` starts the process and receives its messages, :mod:`.child` runs in it, and :mod:`.observer` reports from
it. Nothing here imports torch in the parent.
"""
