"""
Train once, reconstruct many scans
==================================

A network pays where many similar scans follow: it is trained once, and starts every later reconstruction close to the
result, so that a few epochs of refinement suffice.
"""

# %%
# Two scans of one experiment
# ---------------------------
#
# Same beam, different places of a sample of overlapping discs. The probe is known here; for a real first scan, take
# the probe that "Refine" wrote (:doc:`plot_1_first_scan`).

import logging
import tempfile
from pathlib import Path

from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)
folder = Path(tempfile.mkdtemp(prefix='train-once-'))
for number in (1, 2):
    simulate_scan(folder / f'scan{number}', ScanPlan(rows=11, columns=11, seed=number))
first, second = (read_workflow_folder(folder / f'scan{number}') for number in (1, 2))

# %%
# Train
# -----
#
# In a terminal::
#
#     ptychopinn-torch train scan1 -o trained
#
# This small network trains for 6 epochs, so that the page is built in seconds. The defaults (8 steps, width 16, 20
# epochs) take minutes: 2 to 3 minutes on two CPU cores for 516 patterns of 128 x 128 pixels.

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.storage.model_file import load_model
from ptychopinn_torch_plugin.training.run import train

small = parse_config({'model': {'steps': 4, 'width': 8}, 'training': {'epochs': 6, 'probe_trainable': False}})
model_file = train([first], small, folder / 'trained')
model = load_model(model_file)
print(f'{model_file.name}: {model_file.stat().st_size / 1e3:.0f} kB')
for record in model.header.losses:
    print(f'epoch {record.epoch}: training loss {record.training:.2f}, validation loss {record.validation:.2f}')

# %%
# The loss is a deviance per pixel: 1 means that only photon noise is left.
#
# Reconstruct the second scan
# ---------------------------
#
# The network has not seen this scan. In a terminal::
#
#     ptychopinn-torch reconstruct scan2 -m trained/model.safetensors -o result
#     ptychopinn-torch batch more_scans -m trained/model.safetensors -o results

from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine

few_epochs = parse_config({'refinement': {'refine_epochs': 5, 'refine_probe': False}})
with_network = reconstruct(second, model, few_epochs)
without = refine(second, few_epochs)
print(f'network, then 5 epochs: R-factor {with_network.metrics.r_factor:.4f}')
print(f'5 epochs alone:         R-factor {without.metrics.r_factor:.4f}')
print(f'photon noise alone:     R-factor {with_network.metrics.noise_r_factor:.4f}')

# %%
# ``network_object`` is the object before the refinement.

from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.demo.plots import draw_objects

pixel = load_workflow_folder(folder / 'scan2').product.object_.get_pixel_geometry()
draw_objects(
    [
        ('network alone', with_network.network_object),
        ('network, 5 epochs', with_network.object_array),
        ('5 epochs alone', without.object_array),
    ],
    (pixel.height_m, pixel.width_m),
    'A scan that the network has not seen',
    folder / 'second.png',
)
