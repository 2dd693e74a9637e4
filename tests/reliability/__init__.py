"""Faults injected on purpose; see :mod:`tests.helpers.fault_report`."""
