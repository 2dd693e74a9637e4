"""Train on a training file that Ptychodus exported, stitch, save; load in a fresh process and stitch again."""

import subprocess
import sys

import numpy as np

from ptychopinn_torch_plugin import workflows as ptychopinn

file, folder, *again = sys.argv[1:]
names = {'gridsize': 4, 'neighbor_count': 20, 'nepochs': 5, 'seed': 1}
if not again:
    amplitude, phase, results = ptychopinn.run_cdi_example_torch(file, file, names, M=16, do_stitching=True)
    ptychopinn.save_inference_bundle_torch(results, folder)
    np.savez(f'{folder}/first.npz', amplitude=amplitude, phase=phase)
    subprocess.run([sys.executable, __file__, file, folder, 'again'], check=True)
else:
    models, config = ptychopinn.load_inference_bundle_torch(folder)
    amplitude, phase, results = ptychopinn.reassemble_cdi_image_torch(file, config, M=16, models=models)
    np.savez(f'{folder}/again.npz', amplitude=amplitude, phase=phase)
