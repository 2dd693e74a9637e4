"""Train, and stitch: the workflow functions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.io.output import write_arrays
from ..dependencies import missing
from ..errors import ConfigurationError, InputError
from ..metrics import write_metrics
from . import WorkflowConfig, configuration_from
from .bundle import MODEL_NAME, load_inference_bundle_torch, model_of
from .container import PtychoDataContainerTorch
from .ensure_container import Data, ensure_container, with_groups_of
from .reassembly import Arrangement, arranged_patches, stitch

if TYPE_CHECKING:
    from ..storage.model_file import TrainedModel

logger = logging.getLogger(__name__)

BACKEND = 'pytorch'
RECONSTRUCTION_FILE = 'reconstruction.npz'
"""Name of the file for the stitched object in the output folder."""

Image: TypeAlias = npt.NDArray[np.float32]
Results: TypeAlias = dict[str, Any]


def run_cdi_example_torch(
    train_data: Data | None,
    test_data: Data | None,
    config: object,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,  # noqa: N803 - PtychoPINN's name
    do_stitching: bool = False,
) -> tuple[Image | None, Image | None, Results]:
    """Train a model and, if asked, stitch the test data with it.

    Args:
        train_data: data to train on, any of :data:`~ptychopinn_torch_plugin.workflows.Data`; None takes
            ``train_data_file`` of the configuration.
        test_data: data to stitch; they also judge the model after every epoch if ``config`` speaks PtychoPINN's names,
            or a tree has ``data.hold_out_scan``. None takes ``test_data_file``, or none.
        config: a :class:`~ptychopinn_torch_plugin.config.Config`, or whatever
            :func:`~ptychopinn_torch_plugin.compat.configuration_from` takes.
        flip_x: as in :func:`reassemble_cdi_image_torch`, like the three that follow.
        flip_y: negates y.
        transpose: swaps the image axes of the patches.
        M: side of the central region in pixels.
        do_stitching: stitch the test data.

    Returns:
        ``(amplitude, phase, results)``: float32 images ``(h, w)``, the phase in radians, both None without stitching;
        the results of :func:`train_cdi_model_torch` and, after stitching, of :func:`reassemble_cdi_image_torch`.

    Raises:
        InputError: data cannot be used; or there are no test data to stitch, which is said before the training.
        ConfigurationError: the configuration cannot be honoured.
        MissingDependencyError: torch or Lightning is not installed.
        TrainingError: the training ended without a usable model.
    """
    settings = configuration_from(config)
    if do_stitching and test_data is None and settings.test_data_file is None:
        raise InputError('do_stitching needs data to stitch: give test_data, or test_data_file in the configuration.')
    results = train_cdi_model_torch(train_data, test_data, settings)
    if not do_stitching:
        return None, None, results
    amplitude, phase, stitched = reassemble_cdi_image_torch(
        results['test_container'], settings, flip_x, flip_y, transpose, M, models=results['models']
    )
    return amplitude, phase, results | stitched


def train_cdi_model_torch(train_data: Data | None, test_data: Data | None, config: object) -> Results:
    """Turn both inputs into containers and train with Lightning.

    Args:
        train_data: as in :func:`run_cdi_example_torch`.
        test_data: as in :func:`run_cdi_example_torch`; may be absent.
        config: as in :func:`run_cdi_example_torch`.

    Returns:
        A dictionary:

        - ``history``: ``{'train_loss': [...], 'val_loss': [...]}``, one entry an epoch, dimensionless (see
          ``docs/conventions.md``); a validation loss is None where nothing was held out;
        - ``train_container``, ``test_container`` (None without test data);
        - ``models``: ``{'diffraction_to_obj': TrainedModel}``;
        - ``model_file``: the path of the model, None without ``output_dir``;
        - ``config``: the tree that was trained with;
        - ``backend``: ``'pytorch'``.

    Raises:
        InputError: data cannot be used, or there are none to train on.
        ConfigurationError: the configuration cannot be honoured.
        MissingDependencyError: torch or Lightning is not installed.
        TrainingError: the training ended without a usable model.
    """
    settings = configuration_from(config)
    training = train_data if train_data is not None else settings.train_data_file
    test = test_data if test_data is not None else settings.test_data_file
    if training is None:
        raise InputError('There are no data to train on: give train_data, or train_data_file in the configuration.')
    with _engine():
        train_container = ensure_container(training, settings)
        test_container = None if test is None else ensure_container(test, settings)
        return train_with_lightning(train_container, test_container, settings)


def train_with_lightning(
    train_container: PtychoDataContainerTorch, test_container: PtychoDataContainerTorch | None, config: object
) -> Results:
    """Run the one training loop of the package on the positions in ``train_container``.

    The positions and the group size are those of the container; groups of that size are drawn anew in every epoch. The
    test data judge the model after every epoch if the configuration says so (see :func:`run_cdi_example_torch`);
    otherwise positions of the training data are held out for that.

    Args:
        train_container: data to train on.
        test_container: test data, or None.
        config: as in :func:`run_cdi_example_torch`.

    Returns:
        As :func:`train_cdi_model_torch`.

    Raises:
        InputError: a container of plain arrays makes no scan, or a flat object for a supervised model.
        ConfigurationError: the configuration cannot be honoured.
        MissingDependencyError: torch or Lightning is not installed.
        TrainingError: the training ended without a usable model.
    """
    settings = configuration_from(config)
    with _engine():
        from ..storage.model_file import load_model
        from ..training.run import train
    scan, _ = train_container.members(settings.nphotons)
    tree, is_changed = with_groups_of(train_container, settings.config, scan.size)
    if is_changed:
        logger.warning(
            'The groups of the container have %d positions: that is trained with, not the group size %d of the '
            'configuration.',
            tree.data.group_size,
            settings.config.data.group_size,
        )
    scans = [scan]
    if test_container is not None and (settings.test_data_judge or tree.data.hold_out_scan):
        scans.append(test_container.members(settings.nphotons)[0])
        tree = tree.model_copy(update={'data': tree.data.model_copy(update={'hold_out_scan': True})})
    with _folder(settings) as folder:
        model_file = train(scans, tree, folder)
        model = load_model(model_file)
    return {
        'history': {
            'train_loss': [record.training for record in model.losses],
            'val_loss': [record.validation for record in model.losses],
        },
        'train_container': train_container,
        'test_container': test_container,
        'models': {MODEL_NAME: model},
        'model_file': None if settings.output_dir is None else model_file,
        'config': tree,
        'backend': BACKEND,
    }


def reassemble_cdi_image_torch(
    test_data: Data | None,
    config: object,
    flip_x: bool = False,
    flip_y: bool = False,
    transpose: bool = False,
    M: int = 20,  # noqa: N803 - PtychoPINN's name
    *,
    models: object = None,
) -> tuple[Image, Image, Results]:
    """Reconstruct one dataset with a trained model, cut the object into patches, and stitch these.

    The engine reconstructs all positions of the groups together, as it does for Ptychodus; the answer is
    ``results['reconstruction']``, on the object grid of the data. The images are stitched from its patches by
    PtychoPINN's rule: central regions are shifted, summed, and divided by the shifted and summed ones. Where they lie,
    and without flips and transposition, both show the same object.

    Args:
        test_data: any of :data:`~ptychopinn_torch_plugin.workflows.Data`; None takes ``test_data_file``.
        config: as in :func:`run_cdi_example_torch`; its sections ``inference``, ``refinement`` and ``probe`` are used.
        flip_x: negate the first component, x, of the offsets before stitching.
        flip_y: negate the second component, y, of the offsets before stitching.
        transpose: swap the two image axes of the patches before stitching.
        M: side in pixels of the central region of each patch that is stitched.
        models: what :func:`~ptychopinn_torch_plugin.workflows.load_inference_bundle_torch` returns first, results of a
            training, or a :class:`~ptychopinn_torch_plugin.storage.model_file.TrainedModel`; None takes ``model_path``.

    Returns:
        ``(amplitude, phase, results)``: float32 images ``(h, w)``, the phase in radians. The image is as large as the
        regions need, and 1 where none lies. The results:

        - ``obj_tensor_full``: patches as stitched, complex64 ``(S, H, W, C)``;
        - ``global_offsets``: centroids of the groups as stitched, (x, y) in pixels, ``(S, 1, 2, 1)``;
        - ``recon_amp``, ``recon_phase``: the two images;
        - ``recon_coverage``: bool ``(h, w)``, where a region lies;
        - ``recon_origin``: pixel (y, x) of the object grid at which the image begins;
        - ``reconstruction``: the engine's :class:`~ptychopinn_torch_plugin.types.Reconstruction`;
        - ``test_container``, ``models``, ``backend``.

        With ``output_dir`` the images go into ``reconstruction.npz`` there, and the judgement into ``judgement``.

    Raises:
        InputError: data cannot be used, or ``M`` does not fit the patches.
        ConfigurationError: the configuration cannot be honoured, or names no model where none is given.
        ModelNotLoadedError: there is no trained model in ``models``.
        ModelFileError: the model at ``model_path`` cannot be read.
        MissingDependencyError: torch is not installed.
    """
    settings = configuration_from(config)
    data = test_data if test_data is not None else settings.test_data_file
    if data is None:
        raise InputError('There are no data to stitch: give test_data, or test_data_file in the configuration.')
    with _engine():
        from ..engines.pipeline import reconstruct
    model = _chosen_model(models, settings)
    container = ensure_container(data, settings)
    scan, groups = container.members(settings.nphotons)
    reconstruction = reconstruct(scan, model, settings.config)
    how = Arrangement(flip_x, flip_y, transpose, M)
    arranged = arranged_patches(reconstruction.object_array, scan, groups, how)
    picture = stitch(arranged, how.middle)
    results: Results = {
        'obj_tensor_full': arranged.patches,
        'global_offsets': arranged.global_offsets,
        'recon_amp': np.abs(picture.image),
        'recon_phase': np.angle(picture.image),
        'recon_coverage': picture.coverage,
        'recon_origin': picture.origin,
        'reconstruction': reconstruction,
        'test_container': container,
        'models': {MODEL_NAME: model},
        'backend': BACKEND,
    }
    if settings.output_dir is not None:
        _write(settings.output_dir / RECONSTRUCTION_FILE, results)
        write_metrics(settings.output_dir, reconstruction)
    return results['recon_amp'], results['recon_phase'], results


def _chosen_model(models: object, settings: WorkflowConfig) -> TrainedModel:
    if models is not None:
        return model_of(models)
    if settings.model_path is None:
        raise ConfigurationError('There is no model to stitch with: give models, or model_path in the configuration.')
    return model_of(load_inference_bundle_torch(settings.model_path)[0])


def _write(path: Path, results: Results) -> None:
    """Write the images, the patches' object and its probe to ``path``."""
    reconstruction = results['reconstruction']
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(
        path,
        {
            'recon_amp': results['recon_amp'],
            'recon_phase': results['recon_phase'],
            'recon_origin': np.asarray(results['recon_origin']),
            'object': reconstruction.object_array,
            'coverage': reconstruction.coverage,
            'probe': reconstruction.probe,
            'positions': reconstruction.positions,
        },
    )
    logger.info('The stitched object is in %s.', path)


@contextmanager
def _folder(settings: WorkflowConfig) -> Iterator[Path]:
    """The output folder, or a temporary one that goes when the model has been read."""
    if settings.output_dir is not None:
        yield settings.output_dir
        return
    with TemporaryDirectory(prefix='ptychopinn-') as folder:
        yield Path(folder)


@contextmanager
def _engine() -> Iterator[None]:
    """Turn an import that fails inside into the message that says what to install."""
    try:
        import torch  # noqa: F401 - whether it can be

        yield
    except ImportError as error:
        raise missing(error) from error
