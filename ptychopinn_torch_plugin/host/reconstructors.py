"""The reconstructors that Ptychodus calls: training, inference and refinement in a worker, one call at a time.

``specs/reconstructor.md`` specifies their life cycle. The host iterates the generators below in a background thread and
checks its Stop button after every value; closing a generator ends the worker.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptychodus.api.product import LossValue
from ptychodus.api.reconstruct import ReconstructInput, ReconstructOutput, TrainableReconstructor, TrainOutput

from ..data.io.archive import holds_array
from ..data.io.npz import read_training_npz, write_training_npz
from ..data.io.product import scan_from_reconstruct_input
from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, load_workflow_folder, read_workflow_folder
from ..errors import ConfigurationError, InputError, ModelFileError, ModelNotLoadedError, TrainingError
from ..storage.atomic import write_atomically
from ..storage.model_file import MODEL_FILE, MODEL_SUFFIX, read_model_header
from ..storage.training_output import TrainingOutput
from ..worker import messages
from ..worker.job import open_job, read_preview
from .contract import Action
from .inspection_job import ANSWER_FILE, inspect_in_worker
from .output_check import check_writable
from .runs import LOGGER_NAME, TRAINING, WorkerReconstructor, ignore_run
from .settings import ModelType, PtychoPINNSettings

if TYPE_CHECKING:
    from ..config import Config
    from ..data.scan import RawScan

INSPECTED_FOLDER: Final = 'inspected'
"""Workflow folder, beside the product, of a scan with the proposals of its inspection applied."""

_PATTERNS: Final = 'diff3d'

logger = logging.getLogger(LOGGER_NAME)


class PtychoPINNReconstructor(WorkerReconstructor, TrainableReconstructor):
    """Reconstructor with one kind of model, ``'pinn'`` or ``'supervised'``."""

    def __init__(
        self,
        name: str,
        model_type: ModelType,
        settings: PtychoPINNSettings,
        on_run: Callable[[WorkerReconstructor], None] = ignore_run,
    ) -> None:
        super().__init__(name, settings, on_run)
        self._model_type: ModelType = model_type
        self._model_file: Path | None = None

    # Model file

    def is_model_loaded(self) -> bool:
        """Return whether a model was trained or loaded."""
        return self._model_file is not None

    @property
    def model_file(self) -> Path | None:
        """File of the loaded model; None if none was trained or loaded."""
        return self._model_file

    def get_model_file_filter(self) -> str:
        """Return the filter of the host's file dialogs for models."""
        return f'PtychoPINN (PyTorch) Models (*{MODEL_SUFFIX})'

    def get_model_file_extension(self) -> str:
        """Return the extension of model files, with the dot."""
        return MODEL_SUFFIX

    def load_model_from_file(self, file_path: Path) -> None:
        """Load the model in ``file_path``. Only its header is read here; the worker reads the weights.

        Raises:
            ModelFileError: the file is not a model of this package, or one of the other reconstructor.
        """
        self._check_model_file(Path(file_path))
        self._model_file = Path(file_path).absolute()
        logger.info('Loaded the %s model %s.', self._name, file_path)

    def _check_model_file(self, file_path: Path) -> None:
        found = read_model_header(file_path).config.model.model_type

        if found != self._model_type:
            raise ModelFileError(
                f'{file_path} holds a model of the type "{found}", this reconstructor ({self._name}) needs '
                f'"{self._model_type}": choose the other reconstructor of PtychoPINN (PyTorch), or another file.'
            )

    def _require_model_file(self, purpose: str) -> Path:
        if self._model_file is None:
            raise ModelNotLoadedError(
                f'There is no {self._name} model to {purpose}: train one first, or load one (in the window: Load Model '
                f'in the menu beside Infer; in batch mode: a file named {MODEL_FILE} in the input folder).'
            )

        if not self._model_file.is_file():
            raise ModelNotLoadedError(
                f'The {self._name} model {self._model_file} has been moved or deleted since it was loaded: load it '
                'again from where it is now, or train anew.'
            )

        return self._model_file

    def save_model(self, file_path: Path) -> None:
        """Copy the loaded model to ``file_path``; either the whole file appears there or nothing changes.

        Raises:
            ModelNotLoadedError: no model was trained or loaded, or its file is no longer there.
        """
        source = self._require_model_file('save')
        target = Path(file_path)

        if target.exists() and target.samefile(source):
            return

        write_atomically(target, source.read_bytes())
        logger.info('Saved the %s model as %s.', self._name, target)

    # Training data

    def get_training_data_file_filter(self) -> str:
        """Return the filter of the host's file dialogs for training data."""
        return 'PtychoPINN Training Data (*.npz)'

    def export_training_data(self, file_path: Path, parameters: ReconstructInput) -> None:
        """Write ``parameters`` as a training NPZ (counts, not amplitudes) that :meth:`train` reads."""
        # The host's own writer fills bad pixels in and drops the quadratic phase: training would not be the same.
        write_training_npz(file_path, scan_from_reconstruct_input(parameters))

    def _read_training_scans(self, folder: Path) -> list[RawScan]:
        """Read the training data: NPZ files in the folder, else the host's files in it, else the selected product.

        Raises:
            InputError: there is none of the three, or what there is cannot be used.
        """
        files = [path for path in sorted(folder.glob('*.npz')) if _holds_patterns(path)]

        if files:
            logger.info('Training data: %s in %s.', ', '.join(path.name for path in files), folder)
            return [read_training_npz(path) for path in files]

        if (folder / DIFFRACTION_FILE).is_file() and (folder / PRODUCT_FILE).is_file():
            logger.info('Training data: %s and %s in %s.', DIFFRACTION_FILE, PRODUCT_FILE, folder)
            return [read_workflow_folder(folder)]

        if self._host_run is not None and self._host_run.training_input is not None:
            training_input = self._host_run.training_input
            logger.info(
                'Training data: the selected product "%s" (no training data in %s).',
                training_input.product.metadata.name,
                folder,
            )
            return [scan_from_reconstruct_input(training_input)]

        raise InputError(
            f'{folder} holds no training data: neither *.npz files with an array "diff3d" nor {DIFFRACTION_FILE} '
            f'together with {PRODUCT_FILE} were found, and no product is selected. Choose a folder that has '
            'them, or export training data into it.'
        )

    # Runs

    def check_run(self, action: Action, output_folder: Path | None) -> None:
        """Refuse a run with settings out of range, without a model to reconstruct with, or into a read-only folder.

        Raises:
            ConfigurationError: a setting is out of range.
            ModelNotLoadedError: there is no model to reconstruct with.
            ModelFileError: the model file was replaced by one that cannot be used.
            OutputError: nothing can be written into the folder.
        """
        self._settings.build_config(self._model_type)
        if action == 'reconstruct':
            self._check_model_file(self._require_model_file('reconstruct with'))
        check_writable(output_folder)

    def train(self, input_path: Path, output_path: Path) -> Iterator[TrainOutput]:
        """Train on the data in ``input_path`` and write ``model.safetensors`` into ``output_path``.

        Yields at least once a second. When the run ends, also by an error, by closing this generator or by a signal in
        batch mode, the model that it wrote becomes the loaded one, and the log says what the output folder holds.

        Raises:
            InputError: there is no usable training data.
            ConfigurationError: a setting is out of range.
            TrainingError: training led to no usable model.
            WorkerError: the worker failed or died.
        """
        with self.run(TRAINING):
            output = TrainingOutput(Path(output_path))
            losses = _LossHistory()
            yield losses.to_output(0)

            try:
                yield from self._train(Path(input_path), output.model_file.parent, losses)
            finally:
                self._load_trained(output)

            if not output.has_model():
                raise TrainingError(f'Training ended without a model in {output.model_file.parent}: see the log above.')

            yield losses.to_output(self._progress.done if self.is_stopped else self._progress.finish())

    def _train(self, input_folder: Path, output_folder: Path, losses: _LossHistory) -> Iterator[TrainOutput]:
        config = self._settings.build_config(self._model_type)
        scans = self._read_training_scans(input_folder)
        output_folder.mkdir(parents=True, exist_ok=True)

        with (
            open_job('train', scans, config, output_folder=output_folder) as job,
            closing(self.run_worker(job)) as received,
        ):
            scans.clear()  # the worker reads its own copy

            for message in received:
                if isinstance(message, messages.Losses):
                    losses.add(message)
                elif isinstance(message, messages.Preview):
                    preview = read_preview(message.path)

                    if preview is not None:
                        self._progress.show(preview)

                yield losses.to_output(self._progress.done)

    def _load_trained(self, output: TrainingOutput) -> None:
        """Load the model of the run that has ended; without one, the model loaded before is kept."""
        logger.info('%s', output.describe())

        if output.has_model():
            self._model_file = output.model_file
            logger.info('The %s model %s is loaded.', self._name, output.model_file)

    def reconstruct(self, parameters: ReconstructInput) -> Iterator[ReconstructOutput]:
        """Reconstruct with the loaded model, then refine as the settings say; the last value yielded holds the result.

        Raises:
            ModelNotLoadedError: no model was trained or loaded.
            InputError: the input cannot be reconstructed.
            ConfigurationError: a setting is out of range.
            WorkerError: the worker failed or died.
        """
        with self.run('Reconstruction'):
            model_file = self._require_model_file('reconstruct with')
            self._check_model_file(model_file)
            config = self._settings.build_config(self._model_type)
            yield from self.products(parameters, 'reconstruct', config, model_file)


class RefineReconstructor(WorkerReconstructor):
    """Refinement alone: an iterative engine without a model."""

    def check_run(self, action: Action, output_folder: Path | None) -> None:
        """Refuse a run with settings out of range, or into a read-only folder.

        Raises:
            ConfigurationError: a setting is out of range, or the number of epochs is 0.
            OutputError: nothing can be written into the folder.
        """
        self._build_config()
        check_writable(output_folder)

    def _build_config(self) -> Config:
        config = self._settings.build_config('pinn')
        if config.refinement.refine_epochs == 0:
            raise ConfigurationError(
                '[PtychoPINNPyTorchRefinement] refine_epochs = 0 ("Epochs (refinement)" in the panel): "Refine" needs '
                'at least one epoch.'
            )
        if config.refinement.inspect_apply and not config.refinement.inspect_first:
            raise ConfigurationError(
                '[PtychoPINNPyTorchRefinement] inspect_apply = True needs inspect_first = True: only what was '
                'inspected can be applied.'
            )
        return config

    def reconstruct(self, parameters: ReconstructInput) -> Iterator[ReconstructOutput]:
        """Reconstruct from a flat object by refinement; the last value yielded holds the result.

        Where the settings ask for it, the scan is inspected first.

        Raises:
            InputError: the input cannot be reconstructed.
            ConfigurationError: a setting is out of range, or the number of epochs is 0.
            WorkerError: the worker failed or died.
        """
        with self.run('Refinement'):
            config = self._build_config()

            if config.refinement.inspect_first:
                parameters = yield from self._inspected(parameters, config)

            yield from self.products(parameters, 'refine', config, None)

    def _inspected(
        self, parameters: ReconstructInput, config: Config
    ) -> Generator[ReconstructOutput, None, ReconstructInput]:
        """Inspect the scan; return it, or the righted scan where the proposals are applied (batch mode only).

        ``inspection.json`` and the folder ``inspected`` are written into the output folder, where there is one. In the
        window, the product so far is yielded, so that the host can check Stop.
        """
        folder = self.output_folder
        righted = None if folder is None or not config.refinement.inspect_apply else folder / INSPECTED_FOLDER
        found = yield from self.shown_messages(parameters, inspect_in_worker(parameters, config, apply_to=righted))
        logger.info('%s', found.text)

        if folder is not None:
            write_atomically(folder / ANSWER_FILE, json.dumps(found.document(), indent=2).encode() + b'\n')

        if righted is None or not found.applied:
            return parameters

        logger.info('Applied: %s. The righted scan in %s is refined.', ', '.join(found.applied), righted)
        return load_workflow_folder(righted)


class _LossHistory:
    """Losses of the epochs so far, in the host's own classes."""

    def __init__(self) -> None:
        self._training: list[LossValue] = []
        self._validation: list[LossValue] = []

    def add(self, message: messages.Losses) -> None:
        self._training.append(LossValue(message.epoch, message.training))

        if message.validation is not None:
            self._validation.append(LossValue(message.epoch, message.validation))

    def to_output(self, progress: int) -> TrainOutput:
        return TrainOutput(tuple(self._training), tuple(self._validation), progress)


def _holds_patterns(path: Path) -> bool:
    """Return whether an NPZ file holds training data, from its table of contents alone."""
    holds = holds_array(path, _PATTERNS)

    if not holds:
        logger.info('%s holds no array "diff3d": no training data.', path.name)

    return holds
