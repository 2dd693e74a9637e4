"""
Faint scan: few photons per pattern
===================================

With a few thousand photons in a pattern, an object without any restriction fits the noise. The setting that matters is
the strength of the total variation, ``refinement.smoothing``.
"""

# %%
# A scan with 3000 photons per pattern
# ------------------------------------

import tempfile
from pathlib import Path

from ptychodus.api.io import load_product

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder, read_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import TRUTH_FILE, ScanPlan, simulate_scan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import compare_with_truth

folder = Path(tempfile.mkdtemp(prefix='faint-scan-'))
simulate_scan(folder, ScanPlan(rows=12, columns=12, photons=3e3))
scan, truth = read_workflow_folder(folder), load_product(folder / TRUTH_FILE)
parameters = load_workflow_folder(folder)
print(f'{scan.counts.sum(axis=(1, 2)).mean():.0f} photons per pattern, {scan.counts.mean():.2f} per pixel')

# %%
# Three strengths
# ---------------
#
# The default, -1, computes the strength from the photons on the object; it hardly changes a bright scan. On a faint
# one it also sets small coefficients of the cosine transforms of blocks of 8 x 8 pixels to zero, which keeps texture
# better. 4 photons is the total variation alone, and stronger; 0 is off. The likelihood needs no choice: below 20
# counts per pixel it is that of Poisson noise.

objects = []
for smoothing in (-1.0, 4.0, 0.0):
    result = refine(scan, parse_config({'refinement': {'smoothing': smoothing}}))
    pair = compare_with_truth(truth, product_from_reconstruction(parameters, result))
    print(
        f'smoothing {smoothing}: R-factor {result.metrics.r_factor:.3f} '
        f'(photon noise alone {result.metrics.noise_r_factor:.3f}), '
        f'amplitude SSIM {pair.scores.amplitude_ssim:.2f}, phase SSIM {pair.scores.phase_ssim:.2f}'
    )
    objects.append((f'smoothing {smoothing}', pair.product))

# %%
# Without smoothing, the R-factor lies further below that of photon noise alone: the object has fitted the noise. A
# lower R-factor is then *not* a better object. Where no truth is known, compare half scans (``inference.half_scans``,
# :doc:`/judgement`).

from ptychopinn_torch_plugin.demo.plots import draw_objects

pixel = truth.object_.get_pixel_geometry()
draw_objects([('truth', pair.truth), *objects], (pixel.height_m, pixel.width_m), '3000 photons', folder / 'faint.png')

# %%
# The objects of this page have flat areas with sharp edges, which the total variation keeps. It removes detail that
# is as fine as the pixels; for a fine texture, choose a small number of photons. In a terminal::
#
#     ptychopinn-torch refine scan -o result --set refinement.smoothing=0.5
