"""
First scan: look, then reconstruct
==================================

A scan of a Siemens star arrives together with a guess of the probe. The raw data are inspected first, then the scan is
reconstructed with the reconstructor "Refine", which needs no trained model.
"""

# %%
# The scan
# --------
#
# A scan is a workflow folder of Ptychodus with two files: ``diffraction.h5`` (patterns) and ``product.h5`` (positions
# and a probe). Here it is simulated: 144 patterns of 64 x 64 pixels with 10⁶ photons each. The probe in the product
# has a wrong defocus (1.17 instead of 1.3 mm), as a probe from a formula has.

import tempfile
from pathlib import Path

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

folder = Path(tempfile.mkdtemp(prefix='first-scan-'))  # take a folder of your own here
simulate_scan(folder / 'scan', ScanPlan(rows=12, columns=12, sample='star', assumed_defocus_factor=0.9))

# %%
# Look first
# ----------
#
# Most failed reconstructions have their cause in the data: a flipped detector axis, a wrong distance, a wrong centre.
# ``inspect`` finds these in the patterns themselves, before any reconstruction
# (:doc:`/inspect`). In a terminal::
#
#     ptychopinn-torch inspect scan
#
# The same in Python:

import torch

from ptychopinn_torch_plugin.inspection.inspect import inspect
from ptychopinn_torch_plugin.inspection.reading import read_measurement

measurement = read_measurement(folder / 'scan')
inspection = inspect(measurement, torch.device('cpu'))
print(inspection.report.text())

# %%
# Reconstruct
# -----------
#
# "Refine" starts from a transparent object and refines object, probe and positions together. In a terminal::
#
#     ptychopinn-torch refine scan -o result
#
# In Python, all settings that are not given have their defaults:

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import verdict, write_metrics

scan = read_workflow_folder(folder / 'scan')
result = refine(scan, parse_config({}))
print(verdict(result.metrics))

# %%
# See the result
# --------------
#
# The object is a complex array ``(h, w)``; outside ``result.coverage`` no pattern has information, and it is 1 there.

from ptychopinn_torch_plugin.demo.plots import draw_objects

pixel_m = measurement.geometry.object_pixel_m
draw_objects([('refined', result.object_array)], pixel_m, 'First scan', folder / 'object.png')

# %%
# Is it right?
# ------------
#
# ``write_metrics`` makes the same files as the command: numbers, maps and a plot in the folder ``judgement``. If the
# map of the residuals on the object shows the object, go on with :doc:`/which-setting`.

_ = write_metrics(folder, result, pixel_m)
