"""Configuration, data and models under the names that people who script PtychoPINN know."""

from __future__ import annotations

from .names import WorkflowConfig, configuration_from

__all__ = ['WorkflowConfig', 'configuration_from']
