"""PtychoPINN's workflow functions on the engine of this package.

The functions have the names and meanings that people who script PtychoPINN know (Hoidn et al., Sci Rep 13, 22789,
2023; arXiv 2602.21361, 2026); ``docs/coming-from-ptychopinn.md`` says what differs. They call the one training loop,
predictor, stitcher and model file that the reconstructor of Ptychodus uses. Importing this module needs neither torch
nor Lightning; without them every function that computes raises
:class:`~ptychopinn_torch_plugin.errors.MissingDependencyError`, a :class:`RuntimeError`.

``workflows.components`` is another name of this module. The functions call each other by the names in it, with the
configuration object of the caller: a function that is replaced here, under either name, is the one that is called.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from .compat.bundle import load_inference_bundle_torch, save_inference_bundle_torch, save_torch_bundle
from .compat.container import PtychoDataContainerTorch
from .compat.engine_calls import BACKEND, Image, Results, reassemble_container, train_containers
from .compat.ensure_container import Data, ensure_container
from .compat.names import configuration_from, map_names
from .compat.raw import RawDataTorch
from .compat.reassembly import Arrangement
from .errors import InputError

logger = logging.getLogger(__name__)

__all__ = [
    'Data',
    'PtychoDataContainerTorch',
    'RawDataTorch',
    '_ensure_container',
    '_reassemble_cdi_image_torch',
    '_train_with_lightning',
    'ensure_container',
    'load_inference_bundle_torch',
    'reassemble_cdi_image_torch',
    'run_cdi_example_torch',
    'save_inference_bundle_torch',
    'save_torch_bundle',
    'train_cdi_model_torch',
]

components = sys.modules[__name__]
"""This module under the name of PtychoPINN's module, as ``os.path`` is another module's name: one namespace, so that a
function is replaced under both names at once."""
sys.modules[f'{__name__}.components'] = components


def run_cdi_example_torch(  # noqa: PLR0913 - PtychoPINN's arguments
    train_data: Data | Sequence[Data] | None,
    test_data: Data | None,
    config: object,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,  # noqa: N803 - PtychoPINN's name
    do_stitching: bool = False,
    *,
    execution_config: object = None,
) -> tuple[Image | None, Image | None, Results]:
    """Train a model and, if requested, stitch the test data with it.

    Args:
        train_data: data to train on, any of :data:`Data`, or a list of them: one model learns from several scans. None
            takes ``train_data_file`` of the configuration.
        test_data: data to stitch; the model is also validated on them after every epoch if ``config`` holds
            PtychoPINN's names, or settings with ``data.hold_out_scan``. None takes ``test_data_file``, or none.
        config: a :class:`~ptychopinn_torch_plugin.config.Config`, or whatever
            :func:`~ptychopinn_torch_plugin.compat.configuration_from` takes.
        flip_x: as in :func:`reassemble_cdi_image_torch`, like the three that follow.
        flip_y: negates y.
        transpose: swaps the image axes of the patches.
        M: side of the central region in pixels.
        do_stitching: stitch the test data. Without test data nothing is stitched, and a warning says so.
        execution_config: further names, for example the execution settings of PtychoPINN.

    Returns:
        ``(amplitude, phase, results)``: float32 images ``(h, w)``, the phase in radians, both None without stitching;
        the results of :func:`train_cdi_model_torch` and, after stitching, of :func:`reassemble_cdi_image_torch`.

    Raises:
        InputError: data cannot be used.
        ConfigurationError: the configuration cannot be used.
        MissingDependencyError: torch or Lightning is not installed.
        TrainingError: the training ended without a usable model.
    """
    test_data = _data_or_file(test_data, 'test_data_file', config)
    if do_stitching and test_data is None:
        logger.warning(
            'do_stitching = True, but there are no test data: nothing is stitched, and both images are None. Give '
            'test_data, or test_data_file in the configuration.'
        )
    more = _more(execution_config)
    results = train_cdi_model_torch(train_data, test_data, config, **more)
    if not do_stitching or test_data is None:
        return None, None, results
    container = results.get('test_container')
    amplitude, phase, stitched = _reassemble_cdi_image_torch(
        test_data if container is None else container,
        config,
        flip_x,
        flip_y,
        transpose,
        M,
        train_results=results,
        **more,
    )
    return amplitude, phase, results | stitched


def train_cdi_model_torch(
    train_data: Data | Sequence[Data] | None,
    test_data: Data | None,
    config: object,
    execution_config: object = None,
) -> Results:
    """Turn both inputs into containers and train with Lightning.

    Args:
        train_data: as in :func:`run_cdi_example_torch`.
        test_data: as in :func:`run_cdi_example_torch`; may be absent.
        config: as in :func:`run_cdi_example_torch`.
        execution_config: as in :func:`run_cdi_example_torch`.

    Returns:
        A dictionary:

        - ``history``: ``{'train_loss': [...], 'val_loss': [...]}``, one entry an epoch, dimensionless (see
          ``docs/conventions.md``); a validation loss is None where nothing was held out;
        - ``train_container``, a list of them for several scans, and ``test_container``, None without test data;
        - ``models``: ``{'diffraction_to_obj': TrainedModel}``;
        - ``model_file``: the path of the model, None without ``output_dir``;
        - ``config``: the settings that were trained with;
        - ``backend``: ``'pytorch'``.

    Raises:
        InputError: data cannot be used, or there are none to train on.
        ConfigurationError: the configuration cannot be used.
        MissingDependencyError: torch or Lightning is not installed.
        TrainingError: the training ended without a usable model.
    """
    if train_data is None:
        train_data = _data_or_file(None, 'train_data_file', config)
    test_data = _data_or_file(test_data, 'test_data_file', config)
    if train_data is None:
        raise InputError('There are no data to train on: give train_data, or train_data_file in the configuration.')
    train_container = (
        [_ensure_container(data, config) for data in train_data]
        if isinstance(train_data, list | tuple)
        else _ensure_container(cast(Data, train_data), config)
    )
    test_container = None if test_data is None else _ensure_container(test_data, config)
    results = _train_with_lightning(train_container, test_container, config, **_more(execution_config))
    always: Results = {'train_container': train_container, 'test_container': test_container, 'backend': BACKEND}
    return always | results


def _ensure_container(data: Data, config: object) -> PtychoDataContainerTorch:
    """Call :func:`ensure_container`, under PtychoPINN's name."""
    return ensure_container(data, config)


def _train_with_lightning(
    train_container: PtychoDataContainerTorch | Sequence[PtychoDataContainerTorch],
    test_container: PtychoDataContainerTorch | None,
    config: object,
    execution_config: object = None,
) -> Results:
    """Run the one training loop of the package on the positions in ``train_container``.

    The positions and the group size are those of the container; groups of that size are drawn anew in every epoch. The
    model is validated on the test data after every epoch if the configuration says so (see
    :func:`run_cdi_example_torch`); otherwise positions of the training data are held out for that.

    Args:
        train_container: data to train on, or several of them.
        test_container: test data, or None.
        config: as in :func:`run_cdi_example_torch`.
        execution_config: as in :func:`run_cdi_example_torch`.

    Returns:
        As :func:`train_cdi_model_torch`.

    Raises:
        InputError: a container of plain arrays makes no scan, or the object is flat and the model supervised.
        ConfigurationError: the configuration cannot be used.
        MissingDependencyError: torch or Lightning is not installed.
        TrainingError: the training ended without a usable model.
    """
    return train_containers(train_container, test_container, configuration_from(config, *_given(execution_config)))


def reassemble_cdi_image_torch(  # noqa: PLR0913 - PtychoPINN's arguments
    test_data: Data | None,
    config: object,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,  # noqa: N803 - PtychoPINN's name
    train_results: Results | None = None,
    *,
    models: object = None,
    execution_config: object = None,
) -> tuple[Image, Image, Results]:
    """Reconstruct one dataset with a trained model, cut the object into patches, and stitch these.

    The engine reconstructs all positions of the groups together, as it does for Ptychodus, and then refines the object
    of the network against the counts; ``refine_epochs = 0`` in the configuration leaves the refinement out, and the
    images are those of the network. The images are stitched from patches of the object by PtychoPINN's rule: central
    regions are shifted, summed, and divided by the shifted and summed ones. Where they lie, and without flips and
    transposition, images and object show the same.

    Args:
        test_data: any of :data:`Data`; None takes ``test_data_file``.
        config: as in :func:`run_cdi_example_torch`; its sections ``inference``, ``refinement`` and ``probe`` are used.
        flip_x: negate the first component, x, of the offsets before stitching.
        flip_y: negate the second component, y, of the offsets before stitching.
        transpose: swap the two image axes of the patches before stitching.
        M: side in pixels of the central region of each patch that is stitched.
        train_results: the results of a training, in place of ``models``.
        models: what :func:`load_inference_bundle_torch` returns first, results of a training, or a
            :class:`~ptychopinn_torch_plugin.storage.model_file.TrainedModel`; None takes ``model_path``.
        execution_config: as in :func:`run_cdi_example_torch`.

    Returns:
        ``(amplitude, phase, results)``: float32 images ``(h, w)``, the phase in radians. The image is as large as the
        regions need, and 1 where none lies. The results:

        - ``obj_tensor_full``: patches as stitched, complex64 ``(S, H, W, C)``;
        - ``global_offsets``: centroids of the groups as stitched, (x, y), coordinates of the data in pixels,
          ``(S, 1, 2, 1)``;
        - ``recon_amp``, ``recon_phase``: the two images;
        - ``recon_coverage``: bool ``(h, w)``, where a region lies;
        - ``recon_origin``: pixel (y, x) of the object grid at which the images begin;
        - ``object_origin``: coordinates (y, x) of the data at which the object grid begins, pixels;
        - ``network_object``: the object of the network before refinement, complex64, on the object grid;
        - ``refined_object``: the object after refinement; None with ``refine_epochs = 0``;
        - ``network_amp``, ``network_phase``: images of ``network_object``, stitched as the other two;
        - ``reconstruction``: the engine's :class:`~ptychopinn_torch_plugin.types.Reconstruction`;
        - ``test_container``, ``models``, ``backend``.

        With ``output_dir`` the images and objects go into ``reconstruction.npz`` there, and the metrics into
        ``judgement``.

    Raises:
        InputError: data cannot be used, or ``M`` does not fit the patches.
        ConfigurationError: the configuration cannot be used, or names no model where none is given.
        ModelNotLoadedError: there is no trained model in ``models``.
        ModelFileError: the model at ``model_path`` cannot be read.
        MissingDependencyError: torch is not installed.
    """
    data = _data_or_file(test_data, 'test_data_file', config)
    if data is None:
        raise InputError('There are no data to stitch: give test_data, or test_data_file in the configuration.')
    settings = map_names(config, *_given(execution_config))
    container = _ensure_container(data, config)
    how = Arrangement(flip_x, flip_y, transpose, M)
    return reassemble_container(container, settings, how, train_results if models is None else models)


def _reassemble_cdi_image_torch(*args: Any, **options: Any) -> tuple[Image, Image, Results]:  # noqa: ANN401
    """Call :func:`reassemble_cdi_image_torch`, under PtychoPINN's name."""
    return reassemble_cdi_image_torch(*args, **options)


def _data_or_file(data: Data | None, name: str, config: object) -> Data | Path | None:
    """Return ``data``, or the file that the configuration names for them."""
    if data is not None:
        return data
    path: Path | None = getattr(map_names(config), name)
    return path


def _given(execution_config: object) -> tuple[object, ...]:
    """Return further parts of a configuration."""
    return () if execution_config is None else (execution_config,)


def _more(execution_config: object) -> dict[str, object]:
    """Return the keyword to hand on; none where it was not given, so that a replaced function need not know it."""
    return {} if execution_config is None else {'execution_config': execution_config}
