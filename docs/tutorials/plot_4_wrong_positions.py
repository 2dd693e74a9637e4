"""
Wrong positions
===============

A stage whose readings are wrong by several pixels gives a blurred object and a high R-factor. The refinement corrects
errors of about a pixel; larger ones are searched first.
"""

# %%
# Spoil the positions
# -------------------
#
# Random errors of 3 pixels (standard deviation, per axis) are added to the true positions.

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder, read_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

folder = Path(tempfile.mkdtemp(prefix='wrong-positions-'))
simulate_scan(folder, ScanPlan(rows=12, columns=12))
true = read_workflow_folder(folder)
error = np.random.default_rng(0).normal(scale=3.0, size=true.positions.shape)
scan = replace(true, positions=true.positions + error)

# %%
# Reconstruct
# -----------
#
# ``search_positions`` is the largest error to search for, in pixels; it takes longer the larger it is. In a
# terminal::
#
#     ptychopinn-torch refine scan -o result --set refinement.search_positions=8

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines.pipeline import refine

attempts = {
    'positions kept': {'refine_positions': False},
    'refined': {},
    'searched, then refined': {'search_positions': 8.0},
}
results = {name: refine(scan, parse_config({'refinement': settings})) for name, settings in attempts.items()}

# %%
# A common shift of all positions moves the object and changes nothing else; it is left out of the error.

for name, result in results.items():
    left = result.positions - true.positions
    left -= np.median(left, axis=0)
    print(
        f'{name:<24}R-factor {result.metrics.r_factor:.3f}, '
        f'error of the positions: median {np.median(np.hypot(*left.T)):.2f} pixels'
    )

# %%
# The objects
# -----------

from ptychopinn_torch_plugin.demo.plots import draw_objects

pixel = load_workflow_folder(folder).product.object_.get_pixel_geometry()
draw_objects(
    [(name, result.object_array) for name, result in results.items()],
    (pixel.height_m, pixel.width_m),
    'Positions wrong by 3 pixels',
    folder / 'positions.png',
)

# %%
# A common scale, rotation or shear of the positions is another fault: ``refinement.refine_geometry`` reports it, and
# ``ptychopinn-torch inspect`` proposes a correction.
