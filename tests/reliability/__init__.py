"""Faults injected on purpose; see :mod:`tests.ledger`."""
