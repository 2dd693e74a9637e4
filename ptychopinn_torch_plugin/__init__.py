"""Ptychographic reconstruction with physics-informed networks, as a plug-in of Ptychodus.

Importing this package loads neither torch nor Lightning nor Qt: the Ptychodus process imports it at start.
"""

from __future__ import annotations

__version__ = '0.1.0'

__all__ = ['__version__']
