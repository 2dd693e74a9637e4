"""Whatever data a workflow function is given become a container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

import numpy.typing as npt

from ..config import Config
from ..data.diffraction_quantity import DiffractionQuantity
from ..data.scan import RawScan
from ..data.subsampling import select_subsample
from ..errors import InputError
from . import WorkflowConfig, configuration_from
from .container import GroupedScan, PtychoDataContainerTorch
from .raw import RawDataTorch, drawn_groups

Data: TypeAlias = (
    str | Path | Mapping[str, npt.ArrayLike] | RawScan | RawDataTorch | GroupedScan | PtychoDataContainerTorch
)
"""What the workflow functions take: a training NPZ, a Ptychodus workflow folder, arrays under the keys of a training
file, a scan, raw data, grouped data, or a container."""


def ensure_container(data: Data, config: object = None) -> PtychoDataContainerTorch:
    """Raw data become grouped data in a container; a container passes through untouched (the same object).

    Without ``n_groups``, groups are compact and hold every position at least once; with it, so many are drawn: anchors
    with some of their nearest neighbours. Nothing is copied: a container holds the scan and a table of groups.

    Args:
        data: a path to a training NPZ or to a workflow folder; a mapping of arrays with the keys of a training file;
            a :class:`~ptychopinn_torch_plugin.data.scan.RawScan`; raw data; what ``generate_grouped_data`` returns; or
            a container.
        config: a :class:`~ptychopinn_torch_plugin.config.Config`, or whatever
            :func:`~ptychopinn_torch_plugin.compat.configuration_from` takes; None is the defaults.

    Returns:
        The container.

    Raises:
        InputError: the data cannot be used, or their patterns do not have ``N`` x ``N`` pixels.
        ConfigurationError: the configuration cannot be honoured.
    """
    settings = configuration_from({} if config is None else config)
    if isinstance(data, GroupedScan):
        data = PtychoDataContainerTorch(data, data.scan.probe)
    if isinstance(data, PtychoDataContainerTorch):
        _check_size(data, settings)
        return data
    raw = as_raw(data, settings)
    tree = settings.config.data
    if settings.n_subsample:
        raw = RawDataTorch(select_subsample(raw.scan, settings.n_subsample, tree.subsample_seed))
    if settings.n_groups is None:
        groups = raw.tiles(tree.group_size)
    else:
        groups = drawn_groups(
            raw,
            tree.group_size,
            tree.neighbor_count,
            settings.n_groups,
            seed=settings.config.training.seed,
            sequential=tree.sequential_sampling,
        )
    container = raw.container(groups)
    _check_size(container, settings)
    return container


def as_raw(data: object, settings: WorkflowConfig) -> RawDataTorch:
    """Read or wrap ungrouped ``data``.

    Raises:
        InputError: they cannot be used, or are of a type that is none of :data:`Data`.
    """
    dialect = cast(DiffractionQuantity, settings.dialect)
    if isinstance(data, RawDataTorch):
        return data
    if isinstance(data, RawScan):
        return RawDataTorch(data)
    if isinstance(data, str | Path):
        if Path(data).is_dir():
            from ..data.io.workflow_folder import read_workflow_folder

            return RawDataTorch(read_workflow_folder(Path(data)))
        return RawDataTorch.from_file(data, dialect=dialect, nphotons=settings.nphotons)
    if isinstance(data, Mapping):
        return RawDataTorch.from_arrays(data, dialect=dialect, nphotons=settings.nphotons)
    raise InputError(
        f'Data of type {type(data).__name__} cannot be used: give a training NPZ, a workflow folder, arrays under the '
        'keys of a training file, a RawScan, RawDataTorch or PtychoDataContainerTorch.'
    )


def with_groups_of(container: PtychoDataContainerTorch, config: Config, positions: int) -> tuple[Config, bool]:
    """``config`` with the group size of ``container``, and whether that changed it."""
    size = container.nn_indices.shape[1]
    if size == min(config.data.group_size, positions):
        return config, False
    data = config.data.model_copy(
        update={'group_size': size, 'neighbor_count': max(config.data.neighbor_count, size - 1)}
    )
    return config.model_copy(update={'data': data}), True


def _check_size(container: PtychoDataContainerTorch, settings: WorkflowConfig) -> None:
    size = settings.pattern_size
    if size is not None and container.pattern_shape != (size, size):
        height, width = container.pattern_shape
        raise InputError(
            f'N is {size} but the patterns have {height} x {width} pixels: correct N, or crop, bin or pad the patterns.'
        )
