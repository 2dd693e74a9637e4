"""Configuration as PtychoPINN's users write it, mapped to the one frozen tree of this package."""

from __future__ import annotations

from .names import NAMES, WorkflowConfig, configuration_from
from .table import names_table

__all__ = ['NAMES', 'WorkflowConfig', 'configuration_from', 'names_table']
