"""Print ``docs/configuration-names.md``."""

from __future__ import annotations

import sys

from .table import names_table

sys.stdout.write(names_table())
