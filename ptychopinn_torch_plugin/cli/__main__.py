"""``python -m ptychopinn_torch_plugin.cli``: the command without its script on the path."""

from __future__ import annotations

import sys

from . import main

if __name__ == '__main__':
    sys.exit(main())
