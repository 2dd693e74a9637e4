"""
Script with the workflow functions of PtychoPINN
================================================

Scripts written for PtychoPINN run with another import (:doc:`/coming-from-ptychopinn`). This one trains on a training
file and stitches the images.
"""

# %%
# A training file
# ---------------
#
# Any training file of PtychoPINN or Ptychodus can be used. This one is exported from a simulated scan, as
# ``ptychopinn-torch export scan -o scan.npz`` does it.

import logging
import tempfile
from pathlib import Path

from ptychopinn_torch_plugin import workflows
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)
folder = Path(tempfile.mkdtemp(prefix='workflow-functions-'))
simulate_scan(folder / 'scan', ScanPlan(rows=10, columns=10))
write_training_npz(folder / 'scan.npz', read_workflow_folder(folder / 'scan'))

# %%
# Train and stitch
# ----------------
#
# The names are those of PtychoPINN (:doc:`/configuration-names`). ``n_filters_scale`` and ``nepochs`` are small here,
# so that the page is built in seconds.

names = {
    'N': 64,
    'gridsize': 4,
    'neighbor_count': 20,
    'nepochs': 4,
    'n_filters_scale': 0.5,
    'probe_trainable': False,
    'logger_backend': None,
    'refine_epochs': 20,
}
file = folder / 'scan.npz'
amplitude, phase, results = workflows.run_cdi_example_torch(file, file, names, M=24, do_stitching=True)
print('amplitude', amplitude.shape, amplitude.dtype, 'phase', phase.shape, phase.dtype)
print('training loss per epoch:', [round(loss, 2) for loss in results['history']['train_loss']])
print(f'R-factor {results["reconstruction"].metrics.r_factor:.3f}')

# %%
# The network's object and the refined object are both among the results.

from ptychopinn_torch_plugin.demo.plots import draw_objects

draw_objects(
    [('network', results['network_object']), ('refined', results['refined_object'])],
    (1e-6, 1e-6),
    'Workflow functions (training files have no lengths: one pixel is drawn as 1 µm)',
    folder / 'images.png',
)

# %%
# Save and load
# -------------
#
# The bundle is one ``model.safetensors``, which Ptychodus and the command line load, too.

workflows.save_torch_bundle(results, str(folder / 'bundle'))
models, config = workflows.load_inference_bundle_torch(str(folder / 'bundle'))
print(sorted(path.name for path in (folder / 'bundle').iterdir()), config.training.epochs)
