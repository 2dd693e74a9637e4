"""Pictures of the tutorials for sphinx-gallery, which finds this function by its name."""

from __future__ import annotations

import shutil
from typing import Any

from sphinx_gallery.scrapers import figure_rst


def collect(_block: object, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Move the PNG files that a tutorial has written into its ``folder`` to the site, and return their place in it."""
    folder = block_vars['example_globals'].get('folder')
    pictures = [] if folder is None else sorted(folder.rglob('*.png'))
    targets = [target for _, target in zip(pictures, block_vars['image_path_iterator'], strict=False)]
    for picture, target in zip(pictures, targets, strict=True):
        shutil.move(picture, target)
    return str(figure_rst(targets, gallery_conf['src_dir'])) if targets else ''
