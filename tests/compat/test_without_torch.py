"""In a process where torch cannot be imported, everything imports, and calls say what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ptychopinn_torch_plugin.dependencies import missing
from ptychopinn_torch_plugin.errors import MissingDependencyError

PROGRAM = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import numpy as np
import ptychopinn_torch_plugin
from ptychopinn_torch_plugin import PtychoDataContainerTorch, RawDataTorch, configuration_from, workflows
assert configuration_from({{'nepochs': 3}}).config.training.epochs == 3
rng = np.random.default_rng(0)
data = {{'diff3d': rng.poisson(3.0, (4, 16, 16)), 'xcoords': np.arange(4.0), 'ycoords': np.arange(4.0),
        'probeGuess': np.ones((16, 16), dtype=complex)}}
container = workflows.ensure_container(data, {{'gridsize': 2}})
assert container.X.shape == (1, 16, 16, 4)
calls = {{
    'run': lambda: workflows.run_cdi_example_torch(container, container, {{}}, do_stitching=True),
    'train': lambda: workflows.train_cdi_model_torch(container, None, {{}}),
    'lightning': lambda: workflows._train_with_lightning(container, None, {{}}),
    'stitch': lambda: workflows.reassemble_cdi_image_torch(container, {{}}, models=object()),
    'tensors': container.as_tensors,
    'load': lambda: workflows.load_inference_bundle_torch('nowhere'),
    'save': lambda: workflows.save_inference_bundle_torch({{}}, 'nowhere'),
}}
for name in {called}:
    try:
        calls[name]()
    except RuntimeError as error:
        assert 'pip install torch lightning' in str(error), error
        assert {blocked}[0].split('.')[0] in str(error), error
    else:
        sys.exit(name + ' did not raise')
"""


@pytest.mark.parametrize(
    ('blocked', 'called'),
    [
        (['torch', 'lightning'], ['run', 'train', 'lightning', 'stitch', 'tensors', 'load', 'save']),
        (['lightning', 'lightning.pytorch', 'pytorch_lightning'], ['run', 'train', 'lightning']),
    ],
    ids=['torch', 'lightning'],
)
def test_calls_name_what_to_install(blocked: list[str], called: list[str]) -> None:
    program = PROGRAM.format(blocked=blocked, called=called)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_function_words_every_missing_part() -> None:
    error = missing(ImportError('libcuda.so is broken', name='torch._C'))
    assert isinstance(error, MissingDependencyError)
    assert isinstance(error, RuntimeError)
    assert str(error).startswith('torch is needed for this and cannot be imported (libcuda.so is broken): run "')
    assert f'{sys.executable} -m pip install torch lightning", then check' in str(error)
    assert '-m pip install pyyaml".' in str(missing(ImportError('no', name='yaml')))
    assert "-m pip install 'ptychopinn_torch_plugin[mlflow]'\"." in str(missing(ImportError('no', name='mlflow.x')))
    assert '-m pip install h5py".' in str(missing(ImportError('no', name='h5py')))
    assert str(missing(ImportError('no'))).startswith('A package is needed')
    replaced = ImportError('this install seems to be broken', name='scipy')
    replaced.__cause__ = ImportError('libc.so: failed to map segment from shared object')
    assert 'not enough memory to load the libraries (libc.so: failed' in str(missing(replaced))
