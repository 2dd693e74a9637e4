"""The one frozen configuration tree.

Every default, bound, label and tool tip is written here and nowhere else: Ptychodus' settings groups, its panel, the
command line and the header of the model file are derived from these classes. Unknown names and values out of range
are refused (:class:`pydantic.ValidationError`, turned into :class:`~ptychopinn_torch_plugin.errors.ConfigurationError`
by :func:`parse_config`).

This module imports neither torch nor Lightning: the host process reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigurationError

Accelerator = Literal['auto', 'cpu', 'cuda', 'mps']


def setting(default: Any, label: str, tip: str, *, unit: str = '', **bounds: Any) -> Any:  # noqa: ANN401 - pydantic's own type
    """Declare a field that users see: ``label`` and ``unit`` in the panel, ``tip`` as its tool tip and help text.

    ``bounds`` are pydantic's own (``ge``, ``le``, ``gt``, ``lt``). A field declared with plain :func:`pydantic.Field`
    is part of the tree but not a setting of the host.
    """
    return Field(default, title=label, description=tip, json_schema_extra={'unit': unit}, **bounds)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid', strict=False, allow_inf_nan=False)


class DataConfig(_Frozen):
    """How a scan is cut into groups of neighbouring positions."""

    group_size: int = setting(
        64,
        'Group size (C_g)',
        'Neighbouring scan positions that the network sees together. 1 is the overlap-free single-shot mode.',
        unit='positions',
        ge=1,
        le=4096,
    )
    neighbor_count: int = setting(
        80,
        'Neighbour count (K)',
        'A group is an anchor and C_g - 1 of its K nearest neighbours, drawn without replacement.',
        unit='positions',
        ge=0,
        le=16384,
    )
    groups_per_epoch: int = setting(
        0,
        'Groups per epoch',
        'Groups drawn in one epoch of training. 0 draws as many as cover every position once on average.',
        unit='0 = automatic',
        ge=0,
    )
    validation_fraction: float = setting(
        0.05,
        'Validation fraction',
        'Share of the positions that is never trained on and judges the model after every epoch.',
        ge=0.0,
        le=0.5,
    )

    hold_out_scan: bool = setting(
        False,
        'Hold out a scan',
        'With several scans, never train on the last one: it judges the model after every epoch instead of single '
        'positions.',
    )
    subsample: int = setting(
        0,
        'Subsample',
        'Positions of each scan to use, drawn at random. 0 takes all.',
        unit='positions, 0 = all',
        ge=0,
    )
    subsample_seed: int = setting(0, 'Subsample seed', 'Fixes which positions a subsample takes.', ge=0, le=2**31 - 1)
    sequential_sampling: bool = setting(
        False, 'Sequential sampling', 'Take the anchors of the groups in the order of the scan instead of at random.'
    )

    @model_validator(mode='after')
    def _has_enough_neighbours(self) -> DataConfig:
        if self.neighbor_count < self.group_size - 1:
            raise ValueError(
                f'neighbor_count = {self.neighbor_count} is too few for groups of {self.group_size} positions '
                f'(group_size): they need at least {self.group_size - 1}'
            )
        return self


class ProbeConfig(_Frozen):
    """What is done to the given probe before anything else."""

    mask_radius: float = setting(
        0.0,
        'Mask radius',
        'The probe is set to zero outside a disk of this radius around its centre of power. 0 leaves it whole.',
        unit='pixels, 0 = off',
        ge=0.0,
        le=1e5,
    )
    smoothing_sigma: float = setting(
        0.0,
        'Smoothing',
        'Standard deviation of a Gaussian that the probe is convolved with. 0 leaves it as it is.',
        unit='pixels, 0 = off',
        ge=0.0,
        le=1e4,
    )
    scale: float = setting(
        0.0,
        'Scale',
        'Photons of the probe: 0 fits them to the counts; any other value takes the probe as given, times this factor.',
        unit='0 = fitted',
        ge=0.0,
        le=1e9,
    )


class ModelConfig(_Frozen):
    """The network. Everything here is written into the model file and fixed by it afterwards."""

    model_type: Literal['pinn', 'supervised'] = Field(
        'pinn', description="'pinn' learns from the measured patterns alone, 'supervised' from a reference object."
    )
    generator: Literal['unrolled', 'patch'] = setting(
        'unrolled',
        'Generator',
        'The network that turns patterns into object patches. "unrolled": physics steps on the canvas, each followed '
        'by a small shared U-Net. "patch": one pass from a group of patterns to its patches.',
    )
    steps: int = setting(
        8,
        'Physics steps',
        'Physics steps: each is followed by the network ("unrolled"), or all come before its one pass ("patch").',
        unit='steps',
        ge=1,
        le=200,
    )
    width: int = setting(
        16, 'Network width', 'Feature channels of the first level of the U-Net.', unit='channels', ge=4, le=256
    )
    levels: int = setting(3, 'Network levels', 'Resolution levels of the U-Net.', unit='levels', ge=1, le=6)
    memory_channels: int = setting(
        4,
        'Memory channels',
        'Channels that the network "unrolled" hands from one step to the next.',
        unit='channels',
        ge=0,
        le=64,
    )
    amplitude_activation: Literal['softplus', 'sigmoid', 'relu', 'swish'] = setting(
        'softplus',
        'Amplitude activation',
        'What keeps the amplitudes of the generator "patch" in range; its phases are pi tanh.',
    )
    probe_big: bool = setting(
        True,
        'Whole frame',
        'The generator "patch" fills the frame beyond its central half, too, at coarse resolution; otherwise it is 1 '
        'there.',
    )


class TrainingConfig(_Frozen):
    """How the network is trained."""

    epochs: int = setting(30, 'Epochs', 'Passes over the scan.', unit='epochs', ge=1, le=100_000)
    batch_size: int = setting(
        0,
        'Batch size',
        'Groups in one optimiser step. 0 takes as many as hold 64 patterns.',
        unit='groups, 0 = automatic',
        ge=0,
        le=4096,
    )
    learning_rate: float = setting(3e-3, 'Learning rate', 'Largest rate of the schedule (AdamW).', gt=0.0, le=1.0)
    scheduler: Literal['one-cycle', 'constant', 'exponential', 'warmup-cosine', 'plateau'] = setting(
        'one-cycle', 'Schedule', 'How the learning rate changes over the run.'
    )
    likelihood: Literal['amplitude', 'poisson', 'mae'] = setting(
        'amplitude',
        'Likelihood',
        'What simulated and measured patterns are compared by: squared amplitude differences, the Poisson '
        'likelihood of the counts (low dose), or absolute amplitude differences (mae). "Supervised" compares objects '
        'instead.',
    )
    probe_trainable: bool = setting(
        True,
        'Learn the probe',
        'Learn the probe of every scan together with the network; the one of the first scan goes into the model.',
    )
    positions_trainable: bool = setting(
        False, 'Learn the positions', 'Learn the positions of every scan together with the network.'
    )
    intensity_scale_trainable: bool = setting(
        False, 'Learn the intensity scale', 'Learn one photon scale for each scan together with the network.'
    )
    gradient_clip: float = setting(
        1.0, 'Gradient clip', 'Largest norm of the gradient in one step. 0 switches the limit off.', ge=0.0
    )
    early_stop_patience: int = setting(
        0,
        'Patience',
        'The run ends when the judging loss has not improved for so many epochs. 0 runs all epochs.',
        unit='epochs, 0 = off',
        ge=0,
        le=100_000,
    )
    resume: Literal['auto', 'never', 'must'] = setting(
        'auto',
        'Resume',
        'Go on from the state a stopped run left in the output folder: "auto" where it fits these settings and scans, '
        '"must" or fail, "never".',
    )
    seed: int = setting(0, 'Seed', 'Same seed, same machine, CPU: same model.', ge=0, le=2**31 - 1)
    accelerator: Accelerator = setting(
        'auto', 'Accelerator', 'Device to train on. "auto" takes a GPU where there is one.'
    )
    devices: int = setting(1, 'Devices', 'Devices to train on at a time: one.', unit='devices', ge=1, le=64)
    precision: Literal['32', 'bf16', '16'] = setting(
        '32', 'Precision', 'Precision of the convolutions of the network; physics is always float32.', unit='bits'
    )
    accumulate: int = setting(
        1, 'Accumulate', 'Batches whose gradients are added up for one optimiser step.', unit='batches', ge=1, le=4096
    )
    threads: int = setting(
        0,
        'CPU threads',
        'Threads for the computation on a CPU. 0 takes all cores.',
        unit='0 = all cores',
        ge=0,
        le=1024,
    )

    @field_validator('devices')
    @classmethod
    def _is_one(cls, devices: int) -> int:
        if devices != 1:
            raise ValueError('a scan is trained on with one device at a time, choose 1')
        return devices


class ExecutionConfig(_Frozen):
    """How a training run is carried out and logged; nothing here is needed for a good picture."""

    deterministic: bool = setting(
        True, 'Deterministic', 'Ask for algorithms whose result does not change from run to run, where there are any.'
    )
    workers: int = setting(
        0, 'Loader processes', 'Processes that cut batches. 0 cuts them in the training process.', ge=0, le=64
    )
    pin_memory: bool = setting(False, 'Pin memory', 'Loader processes hand batches over in page-locked memory (GPU).')
    persistent_workers: bool = setting(
        False, 'Keep loaders', 'Loader processes live through all epochs instead of starting anew for each.'
    )
    prefetch_factor: int = setting(
        2, 'Prefetched batches', 'Batches each loader process keeps ready.', unit='batches', ge=1, le=1024
    )
    progress_bar: bool = setting(False, 'Progress bar', "Show Lightning's own progress bar in the terminal.")
    checkpoint_top_k: int = setting(
        0,
        'Checkpoints',
        'Model files of the best epochs kept in the folder "checkpoints" beside the model.',
        unit='files, 0 = none',
        ge=0,
        le=1000,
    )
    checkpoint_monitor: Literal['auto', 'loss', 'validation_loss'] = setting(
        'auto', 'Judged by', 'The loss that says which epoch is best; "auto" takes the validation loss if there is one.'
    )
    checkpoint_mode: Literal['min', 'max'] = setting('min', 'Best is', 'Whether the smallest or the largest is best.')
    logger: Literal['csv', 'tensorboard', 'mlflow', 'none'] = setting(
        'csv', 'Logger', 'Where the losses go beside the model; tensorboard and mlflow are extras to install.'
    )
    silence_limit: int = setting(
        900,
        'Silence limit',
        'A worker process that reports neither progress nor a line of log for so long is taken for hung and ended. '
        '0 waits for ever.',
        unit='seconds, 0 = off',
        ge=0,
        le=10_000_000,
    )


class RefinementConfig(_Frozen):
    """How an object is refined against the counts: after the network, or by the reconstructor "Refine" alone."""

    refine_epochs: int = setting(
        60,
        'Epochs',
        'Passes over all patterns. With a network they follow it, and 0 shows what the network alone makes.',
        ge=0,
        le=100_000,
    )
    likelihood: Literal['auto', 'amplitude', 'poisson'] = setting(
        'auto',
        'Likelihood',
        'What simulated and measured patterns are compared by: squared amplitude differences, or the Poisson '
        'likelihood of the counts. "auto" takes Poisson below 20 counts per pixel on average.',
    )
    smoothing: float = setting(
        4.0,
        'Smoothing',
        'Strength of the total-variation prior, in photons: faint scans feel it, bright ones hardly. 0 is off; below '
        '10,000 photons per frame, 0.5 suits an object whose texture is as fine as the pixels.',
        unit='photons',
        ge=0.0,
        le=1e6,
    )
    refine_probe: bool = setting(True, 'Refine the probe', 'Refine all incoherent modes of the probe, too.')
    probe_start: int = setting(
        2, 'Probe from epoch', 'Epochs before the probe moves: first the object must be something.', ge=0
    )
    probe_modes: int = setting(
        0,
        'Probe modes',
        'Incoherent modes to refine. New ones start as weak derivatives of the first; 0 takes those of the product.',
        unit='0 = as given',
        ge=0,
        le=32,
    )
    refine_positions: bool = setting(
        True,
        'Refine the positions',
        'Refine the positions, too. A common shift, scale, rotation or shear of all of them is left as it is.',
    )
    positions_start: int = setting(
        10, 'Positions from epoch', 'Epochs before the positions move: first the object must be sharp.', ge=0
    )
    refine_intensity: bool = setting(
        False, 'Refine the intensities', 'Fit the number of photons of every frame, for a beam that flickers.'
    )
    intensity_start: int = setting(10, 'Intensities from epoch', 'Epochs before the intensities move.', ge=0)
    refine_geometry: bool = setting(
        False,
        'Search the geometry',
        'Search for a common scale, rotation and shear of the positions that fits the patterns better. What is found '
        'is reported in the log, never applied.',
    )
    search_positions: float = setting(
        0.0,
        'Search lost positions',
        'Positions may be wrong by so many pixels: find them by searching before they are refined. 0 does not search.',
        unit='pixels, 0 = off',
        ge=0.0,
        le=256.0,
    )


class InferenceConfig(_Frozen):
    """How a trained network reconstructs a scan."""

    steps: int = setting(
        0,
        'Unrolled steps',
        'Physics steps at inference. 0 takes twice as many as in training.',
        unit='0 = automatic',
        ge=0,
        le=1000,
    )
    window_size: int = setting(
        0,
        'Window size',
        'Positions reconstructed jointly on one canvas. 0 takes the whole scan (best picture), or with the generator '
        '"patch" groups as in training; a small window suits '
        'a GPU with little memory.',
        unit='positions, 0 = all',
        ge=0,
    )
    batch_size: int = setting(
        128, 'Batch size', 'Patterns in memory at a time; no effect on the result.', unit='patterns', ge=1, le=65536
    )
    use_model_probe: Literal['auto', 'always', 'never'] = setting(
        'auto',
        'Use the probe of the model',
        'Reconstruct with the probe saved in the model file instead of the one of the product: "auto" does where it '
        'explains the patterns better, as after a training that has learned it.',
    )
    preview_interval: int = setting(
        1,
        'Preview interval',
        'Show the object in the window after every so many steps. 0 shows the end result only.',
        unit='steps',
        ge=0,
    )
    batch_interval: int = setting(
        0,
        'Interval in batch mode',
        'In batch mode, write the product so far after every so many steps. 0 writes the end result only.',
        unit='steps, 0 = off',
        ge=0,
    )
    half_scans: bool = setting(
        False,
        'Compare half scans',
        'Refine the odd and the even positions apart as well, and report the Fourier ring correlation of the two: the '
        'resolution that the scan itself vouches for. Takes twice the time.',
    )
    accelerator: Accelerator = setting(
        'auto', 'Accelerator', 'Device to reconstruct on. "auto" takes a GPU where there is one.'
    )
    threads: int = setting(
        0,
        'CPU threads',
        'Threads for the computation on a CPU. 0 takes all cores.',
        unit='0 = all cores',
        ge=0,
        le=1024,
    )

    @field_validator('use_model_probe', mode='before')
    @classmethod
    def _reads_the_switch_of_before(cls, wish: object) -> object:
        # Model and settings files of 0.1 hold a boolean here; False was the default, as "auto" is now.
        return {'true': 'always', 'false': 'auto'}.get(str(wish).casefold(), wish)


class Config(_Frozen):
    """The whole tree: what to do, in one value."""

    data: DataConfig = DataConfig()
    probe: ProbeConfig = ProbeConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    execution: ExecutionConfig = ExecutionConfig()
    refinement: RefinementConfig = RefinementConfig()
    inference: InferenceConfig = InferenceConfig()


def reason(item: Mapping[str, Any]) -> str:
    """Why a field was refused, from an entry of :meth:`pydantic.ValidationError.errors`."""
    # Messages of our own validators come with a prefix that says nothing to a user.
    return str(item['msg']).removeprefix('Value error, ')


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Build a :class:`Config` from nested mappings, for example ``{'training': {'epochs': 5}}``.

    Raises:
        ConfigurationError: a name is unknown or a value is out of range; the message lists every such field.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [
            f'{".".join(str(part) for part in item["loc"])} = {item["input"]!r}: {reason(item)}'
            for item in error.errors()
        ]
        raise ConfigurationError('These settings cannot be used: ' + '; '.join(lines) + '.') from error
