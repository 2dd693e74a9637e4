"""The frozen configuration tree.

Every default, bound, label and tool tip is defined here and nowhere else: Ptychodus' settings groups, its panel, the
command line and the header of the model file are derived from these classes. Unknown names and values out of range
are refused (:class:`pydantic.ValidationError`, turned into :class:`~ptychopinn_torch_plugin.errors.ConfigurationError`
by :func:`parse_config`).

This module imports neither torch nor Lightning: the host process reads it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigurationError

Accelerator = Literal['auto', 'cpu', 'cuda', 'mps']
KernelChoice = Literal['auto', 'numba', 'torch']

AUTOMATIC_SMOOTHING = -1.0
"""Value of ``refinement.smoothing`` by which the strength follows the dose."""


def setting(default: Any, label: str, tip: str, *, unit: str = '', lowest: str = '', **bounds: Any) -> Any:  # noqa: ANN401 - pydantic's own type
    """Declare a field that users see.

    Args:
        default: value in every run that does not set another.
        label: name in the panel; no two fields have the same.
        tip: tool tip and help text: what the value does, and when to change it.
        unit: unit of the value, shown behind it.
        lowest: word that is shown in place of the lowest value, mostly 0, where that has a meaning of its own, for
            example ``'automatic'``.
        bounds: pydantic's own (``ge``, ``le``, ``gt``, ``lt``).

    A field declared with plain :func:`pydantic.Field` is part of the tree but not a setting of the host.
    """
    return Field(default, title=label, description=tip, json_schema_extra={'unit': unit, 'lowest': lowest}, **bounds)


def _accelerator_setting(verb: str, stage: str) -> Any:  # noqa: ANN401 - pydantic's own type
    tip = f'Device to {verb} on. "auto" is a GPU if there is one. Choose "cpu" where other programs need the GPU.'
    return setting('auto', f'Accelerator ({stage})', tip)


def _threads_setting(stage: str) -> Any:  # noqa: ANN401 - pydantic's own type
    tip = 'Threads of the computation on a CPU. 0 uses all cores. Lower it where the machine has other work to do.'
    return setting(0, f'CPU threads ({stage})', tip, unit='threads', lowest='all cores', ge=0, le=1024)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid', strict=False, allow_inf_nan=False)


class DataConfig(_Frozen):
    """Groups of neighbouring positions, and the positions that are held out."""

    group_size: int = setting(
        64,
        'Group size (C_g)',
        'Neighbouring scan positions that the network reconstructs together. 1 is the overlap-free single-shot mode. '
        'Lower it if memory runs out in training.',
        unit='positions',
        ge=1,
        le=4096,
    )
    neighbor_count: int = setting(
        80,
        'Neighbour count (K)',
        'A group is an anchor and C_g - 1 of its K nearest neighbours, drawn without replacement. Must be at least the '
        'group size - 1; a larger value makes the groups differ more from each other.',
        unit='positions',
        ge=0,
        le=16384,
    )
    groups_per_epoch: int = setting(
        0,
        'Groups per epoch',
        'Groups drawn in one epoch of training. 0 draws as many as cover every position once on average. Lower it for '
        'shorter epochs on a very large scan.',
        unit='groups',
        lowest='automatic',
        ge=0,
    )
    validation_fraction: float = setting(
        0.05,
        'Validation fraction',
        'Share of the positions that is not trained on; the validation loss is computed from it after every epoch. Set '
        '0 for a scan of few positions.',
        ge=0.0,
        le=0.5,
    )

    hold_out_scan: bool = setting(
        False,
        'Hold out a scan',
        'With several scans, do not train on the last one; the validation loss is computed from it after every epoch '
        'instead of from single positions.',
    )
    subsample: int = setting(
        0,
        'Subsample',
        'Positions of each scan to train on, drawn at random. 0 takes all. Set it for a first trial on a large scan.',
        unit='positions',
        lowest='all',
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
    """Preparation of the given probe, before training or reconstruction."""

    mask_radius: float = setting(
        0.0,
        'Mask radius',
        'The probe is set to zero outside a disk of this radius around its centre of power. 0 applies no mask. Use it '
        'where the given probe has noise far from its centre.',
        unit='pixels',
        lowest='no mask',
        ge=0.0,
        le=1e5,
    )
    smoothing_sigma: float = setting(
        0.0,
        'Smoothing of the probe',
        'Standard deviation of a Gaussian that the probe is convolved with. 0 does not smooth it. Use it for a probe '
        'of an earlier reconstruction that is noisy.',
        unit='pixels',
        lowest='off',
        ge=0.0,
        le=1e4,
    )
    scale: float = setting(
        0.0,
        'Scale of the probe',
        'Photons of the probe: 0 fits them to the counts; any other value takes the probe as given, times this factor. '
        'Change it only if the photons of the probe were measured.',
        lowest='fitted',
        ge=0.0,
        le=1e9,
    )


class ModelConfig(_Frozen):
    """The network. These settings are written into the model file, which fixes them afterwards."""

    model_type: Literal['pinn', 'supervised'] = Field(
        'pinn', description="'pinn' learns from the measured patterns alone, 'supervised' from a reference object."
    )
    generator: Literal['unrolled', 'patch'] = setting(
        'unrolled',
        'Generator',
        'The network that reconstructs the object. "unrolled": physics steps on the object, each followed by a small '
        'shared U-Net. "patch": one pass from a group of patterns to its object patches, faster and of lower quality.',
    )
    steps: int = setting(
        8,
        'Physics steps',
        'Physics steps: each is followed by the network ("unrolled"), or all precede its one pass ("patch"). More '
        'steps give a better object and take longer, in proportion.',
        unit='steps',
        ge=1,
        le=200,
    )
    width: int = setting(
        16,
        'Network width',
        'Feature channels of the first level of the U-Net. Raise it to train on many scans, lower it if memory runs '
        'out.',
        unit='channels',
        ge=4,
        le=256,
    )
    levels: int = setting(
        3,
        'Network levels',
        'Resolution levels of the U-Net. One more doubles the distance over which the network sees the object.',
        unit='levels',
        ge=1,
        le=6,
    )
    memory_channels: int = setting(
        4,
        'Memory channels',
        'Channels that the network "unrolled" passes from one step to the next. There is rarely a reason to change it.',
        unit='channels',
        ge=0,
        le=64,
    )
    amplitude_activation: Literal['softplus', 'sigmoid', 'relu', 'swish'] = setting(
        'softplus',
        'Amplitude activation',
        'Function that limits the amplitudes of the generator "patch"; its phases are pi tanh. Choose "sigmoid" for an '
        'object that only absorbs.',
    )
    probe_big: bool = setting(
        True,
        'Whole patch',
        'The generator "patch" also fills a patch outside its central half, at coarse resolution; if off, the object '
        'is 1 there.',
    )


class TrainingConfig(_Frozen):
    """Training of the network."""

    epochs: int = setting(
        20,
        'Epochs (training)',
        'Passes of the training over the scan. Raise it while the validation loss still falls at the end of a run.',
        unit='epochs',
        ge=1,
        le=100_000,
    )
    batch_size: int = setting(
        0,
        'Batch size (training)',
        'Groups in one optimiser step, on all devices together. 0 takes as many as contain 64 patterns, one for each '
        'device at least. Set 1 if memory runs out in training.',
        unit='groups',
        lowest='automatic',
        ge=0,
        le=4096,
    )
    learning_rate: float = setting(
        3e-3,
        'Learning rate',
        'Largest rate of the schedule (AdamW). Lower it, for example to 0.001, if the loss jumps or is not finite.',
        gt=0.0,
        le=1.0,
    )
    scheduler: Literal['one-cycle', 'constant', 'exponential', 'warmup-cosine', 'plateau'] = setting(
        'one-cycle',
        'Schedule',
        'Change of the learning rate over the run. Choose "plateau" if you do not know how many epochs are needed.',
    )
    likelihood: Literal['amplitude', 'poisson', 'mae'] = setting(
        'amplitude',
        'Likelihood (training)',
        'Comparison of simulated and measured patterns: squared amplitude differences, the Poisson likelihood of the '
        'counts (faint scans), or absolute amplitude differences (mae). "Supervised" compares objects instead.',
    )
    probe_trainable: bool = setting(
        True,
        'Learn the probe',
        'Refine the probe of every scan during training; that of the first scan is saved in the model. Switch it off '
        'only if the probe is known well, for example from "Refine".',
    )
    positions_trainable: bool = setting(
        False,
        'Learn the positions',
        'Refine the positions of every scan during training. Switch it on if the stage is inaccurate by a pixel or '
        'more.',
    )
    intensity_scale_trainable: bool = setting(
        False,
        'Learn the intensity scale',
        'Fit one photon scale for each scan during training. Switch it on for scans of very different exposures.',
    )
    gradient_clip: float = setting(
        1.0,
        'Gradient clip',
        'Largest norm of the gradient in one step. 0 switches the limit off. Lower it if the loss jumps.',
        lowest='off',
        ge=0.0,
    )
    early_stop_patience: int = setting(
        0,
        'Stop early after',
        'The run ends when the monitored loss has not improved for this many epochs. 0 runs all epochs.',
        unit='epochs',
        lowest='off',
        ge=0,
        le=100_000,
    )
    resume: Literal['auto', 'never', 'must'] = setting(
        'auto',
        'Resume',
        'Continue a stopped run whose state is in the output folder: "auto" if it fits these settings and scans, '
        '"must" ends with an error if it does not, "never" starts anew.',
    )
    seed: int = setting(
        0,
        'Seed',
        'Seed of random numbers; the same seed gives the same model on a CPU. Change it to see the effect of chance.',
        ge=0,
        le=2**31 - 1,
    )
    accelerator: Accelerator = _accelerator_setting('train', 'training')
    devices: int = setting(
        1,
        'Devices (training)',
        'Devices that train one model together: GPUs, or processes on a CPU; they divide the groups of each step. '
        'Ignored where torchrun has started the processes.',
        unit='devices',
        ge=1,
        le=64,
    )
    precision: Literal['32', 'bf16', '16'] = setting(
        '32',
        'Precision',
        'Precision of the convolutions of the network; the physics is always float32. "bf16" is faster on a new GPU.',
        unit='bits',
    )
    accumulate: int = setting(
        1,
        'Accumulated batches',
        'Batches whose gradients form one optimiser step. Raise it where memory allows only a small batch.',
        unit='batches',
        ge=1,
        le=4096,
    )
    threads: int = _threads_setting('training')


class ExecutionConfig(_Frozen):
    """Execution and logging of a run; these settings do not change the quality."""

    kernels: KernelChoice = setting(
        'auto',
        'Kernels',
        'Code that computes the patterns on a CPU: "numba" is compiled and several times faster, "torch" is the '
        'reference. "auto" is numba where it is installed. Other devices always use torch.',
    )
    deterministic: bool = setting(
        True, 'Deterministic', 'Use algorithms whose result is the same in every run, where torch has them.'
    )
    workers: int = setting(
        0,
        'Loader processes',
        'Processes that make batches. 0 makes them in the training process.',
        unit='processes',
        lowest='none',
        ge=0,
        le=64,
    )
    pin_memory: bool = setting(False, 'Pin memory', 'Loader processes return batches in page-locked memory (GPU).')
    persistent_workers: bool = setting(
        False, 'Keep loaders', 'Loader processes run through all epochs instead of starting for each.'
    )
    prefetch_factor: int = setting(
        2, 'Prefetched batches', 'Batches that each loader process prepares in advance.', unit='batches', ge=1, le=1024
    )
    progress_bar: bool = setting(False, 'Progress bar', "Show Lightning's own progress bar in the terminal.")
    checkpoint_top_k: int = setting(
        0,
        'Checkpoints',
        'Model files of the best epochs kept in the folder "checkpoints" beside the model.',
        unit='files',
        lowest='none',
        ge=0,
        le=1000,
    )
    checkpoint_monitor: Literal['auto', 'loss', 'validation_loss'] = setting(
        'auto',
        'Monitored loss',
        'The loss that decides which epoch is best; "auto" is the validation loss if there is one.',
    )
    checkpoint_mode: Literal['min', 'max'] = setting('min', 'Best is', 'The smallest or the largest monitored loss.')
    logger: Literal['csv', 'tensorboard', 'mlflow', 'none'] = setting(
        'csv', 'Logger', 'Log of the losses beside the model; tensorboard and mlflow are optional packages.'
    )
    silence_limit: int = setting(
        900,
        'Silence limit',
        'A worker process that sends neither progress nor a log line for this long is ended. 0 does not end it.',
        unit='s',
        lowest='no limit',
        ge=0,
        le=10_000_000,
    )
    idle_limit: int = setting(
        600,
        'Idle limit',
        'A worker process that has finished waits this long for the next call, which then begins at once. 0 starts a '
        'new process for every call.',
        unit='seconds, 0 = off',
        ge=0,
        le=1_000_000,
    )
    idle_memory: int = setting(
        4096,
        'Idle memory',
        'A worker process that holds more main memory than this after a call ends instead of waiting.',
        unit='MB',
        ge=0,
        le=100_000_000,
    )
    report: bool = setting(
        True,
        'Report',
        'Write a report (HTML) of every run: beside the product or the model; that of a reconstruction in the window '
        'into the report folder.',
    )
    report_folder: str = setting(
        '',
        'Report folder',
        'Folder for the reports of reconstructions in the window, with numbers, maps and a plot of the metrics beside '
        'them; the log names each file. Empty is the folder "reports" of this package in your application data, which '
        'keeps the newest 100.',
    )


class RefinementConfig(_Frozen):
    """Refinement against the measured counts: after the network, or by the reconstructor "Refine" alone."""

    refine_epochs: int = setting(
        60,
        'Epochs (refinement)',
        'Passes over all patterns. With a network they follow it; 0 gives the object of the network alone. Raise it if '
        'the deviance in the plot still falls at the end.',
        unit='epochs',
        lowest='none',
        ge=0,
        le=100_000,
    )
    likelihood: Literal['auto', 'amplitude', 'poisson'] = setting(
        'auto',
        'Likelihood (refinement)',
        'Comparison of simulated and measured patterns: squared amplitude differences, or the Poisson likelihood of '
        'the counts. "auto" is Poisson below 20 counts per pixel on average.',
    )
    smoothing: float = setting(
        AUTOMATIC_SMOOTHING,
        'Smoothing',
        'Strength of the total variation, in photons: it smooths faint scans and hardly changes bright ones. -1 '
        'computes it from the photons on the object, adds thresholds on cosine blocks on faint scans and with little '
        'overlap, and writes both into the log; 0 does not smooth.',
        unit='photons',
        lowest='automatic',
        ge=-1.0,
        le=1e6,
    )
    refine_probe: bool = setting(
        True,
        'Refine the probe',
        'Refine all incoherent modes of the probe. Switch it off only if the probe is known well.',
    )
    probe_start: int = setting(
        2,
        'Probe from epoch',
        'Epochs before the probe is refined; the object needs a few epochs first. Raise it if the probe diverges.',
        ge=0,
    )
    probe_modes: int = setting(
        0,
        'Probe modes',
        'Number of incoherent modes. New ones start as weak derivatives of the first; 0 uses those of the product. Try '
        '2 or 3 for a partially coherent beam or a scan on the fly.',
        unit='modes',
        lowest='as given',
        ge=0,
        le=32,
    )
    refine_positions: bool = setting(
        True,
        'Refine the positions',
        'Refine the positions. Their common shift, scale, rotation and shear do not change. Switch it off below about '
        '10,000 photons per pattern.',
    )
    positions_start: int = setting(
        10,
        'Positions from epoch',
        'Epochs before the positions are refined; the object must be sharp first.',
        ge=0,
    )
    refine_intensity: bool = setting(
        False,
        'Refine the intensities',
        'Fit the photons of every pattern, for a beam whose intensity changes.',
    )
    intensity_start: int = setting(10, 'Intensities from epoch', 'Epochs before the intensities are refined.', ge=0)
    refine_geometry: bool = setting(
        False,
        'Search the geometry',
        'Search for a common scale, rotation and shear of the positions that fits the patterns better. The result is '
        'reported in the log and not applied.',
    )
    search_positions: float = setting(
        0.0,
        'Search lost positions',
        'Largest error of the positions: search within it before the refinement. 0 does not search. Set it to 3 or '
        'more if the stage is known to be inaccurate.',
        unit='pixels',
        lowest='off',
        ge=0.0,
        le=256.0,
    )
    stop_when_done: bool = setting(
        True,
        'Stop when done',
        'End the refinement as soon as the misfit no longer falls; its epochs are then the most. Switch it off for a '
        'fixed number of epochs.',
    )
    start: Literal['flat', 'product'] = setting(
        'flat',
        'Start from',
        'Object with which "Refine" begins: "flat" is transparent everywhere; "product" is the object of the selected '
        'product, for example that of an earlier run, which it continues. The probe is that of the product in either '
        'case. Half scans begin flat: objects with a common start would correlate.',
    )
    inspect_first: bool = setting(
        False,
        'Inspect first',
        'Before "Refine" begins, find orientation, defocus and faults of the patterns, and write them into the log; in '
        'batch mode also into inspection.json beside the product. Takes up to a minute.',
    )
    inspect_apply: bool = setting(
        False,
        'Apply the inspection',
        'In batch mode, also apply the usual proposals of "Inspect first": the righted scan is written into the folder '
        '"inspected" beside the product and refined in place of the one given.',
    )

    @field_validator('smoothing')
    @classmethod
    def _is_strength(cls, smoothing: float) -> float:
        if smoothing < 0 and smoothing != AUTOMATIC_SMOOTHING:
            raise ValueError('give -1 (automatic), 0 (off) or a number of photons above 0')
        return smoothing


class InferenceConfig(_Frozen):
    """Reconstruction of a scan with a trained network, and its output."""

    steps: int = setting(
        0,
        'Steps at inference',
        'Physics steps at inference. 0 is twice the number of the training. Raise it if the object is still blurred.',
        unit='steps',
        lowest='automatic',
        ge=0,
        le=1000,
    )
    window_size: int = setting(
        0,
        'Window size',
        'Positions reconstructed together in one object array. 0 is the whole scan (best quality) or, with the '
        'generator "patch", groups as in training; a small window needs less memory.',
        unit='positions',
        lowest='all',
        ge=0,
    )
    batch_size: int = setting(
        128,
        'Batch size (reconstruction)',
        'Patterns in memory at a time; no effect on the result. Lower it if memory runs out.',
        unit='patterns',
        ge=1,
        le=65536,
    )
    use_model_probe: Literal['auto', 'always', 'never'] = setting(
        'auto',
        'Use the probe of the model',
        'Reconstruct with the probe saved in the model file instead of that of the product: "auto" does so if it '
        'explains the patterns better. Choose "never" for a scan with another probe than that of the training.',
    )
    preview_interval: int = setting(
        1,
        'Preview interval',
        'Steps between two displays of the object in the window. 0 shows the final result only. Raise it if the window '
        'is slow on a large object.',
        unit='steps',
        lowest='result only',
        ge=0,
    )
    batch_interval: int = setting(
        0,
        'Interval in batch mode',
        'Steps between two intermediate products in batch mode. 0 writes the final product only.',
        unit='steps',
        lowest='off',
        ge=0,
    )
    devices: int = setting(
        1,
        'Devices (reconstruction)',
        'Devices that reconstruct one scan together: GPUs, or processes on a CPU. Ignored where torchrun has started '
        'the processes.',
        unit='devices',
        ge=1,
        le=64,
    )
    half_scans: bool = setting(
        False,
        'Compare half scans',
        'Also reconstruct the odd and the even positions separately, and report their Fourier ring correlation, which '
        'gives the resolution. Takes twice the time.',
    )
    accelerator: Accelerator = _accelerator_setting('reconstruct', 'reconstruction')
    threads: int = _threads_setting('reconstruction')
    verify: bool = setting(
        True,
        'Verify the result',
        'Predict patterns that are left out, also with the defocus reversed, and report a verdict with a colour. Takes '
        'about 15 % of the time of a refinement.',
    )
    calibrate: bool = setting(
        True,
        'Calibrate the uncertainty',
        'Draw patterns from the result on a part of the scan, refine them, and scale the uncertainty map by the error '
        'found. Takes about 15 % of the time of a refinement. Without effect where a network made the object.',
    )

    @field_validator('use_model_probe', mode='before')
    @classmethod
    def _from_boolean(cls, value: object) -> object:
        # Model and settings files of 0.1 hold a boolean here; False was the default, as "auto" is now.
        return {'true': 'always', 'false': 'auto'}.get(str(value).casefold(), value)


class Config(_Frozen):
    """All settings."""

    data: DataConfig = DataConfig()
    probe: ProbeConfig = ProbeConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    execution: ExecutionConfig = ExecutionConfig()
    refinement: RefinementConfig = RefinementConfig()
    inference: InferenceConfig = InferenceConfig()


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return which of the ``known`` names ``name`` may be a misspelling of, as a question, or a list of all of them."""
    names = list(known)
    close = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else f'choose one of {", ".join(names)}'


def reason(item: Mapping[str, Any]) -> str:
    """Return why a field was refused, from an entry of :meth:`pydantic.ValidationError.errors`."""
    if item['type'] == 'extra_forbidden':
        *sections, name = (str(part) for part in item['loc'])
        names = Config.model_fields
        for section in sections:
            annotation = names[section].annotation
            names = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, _Frozen) else {}
        return f'there is no such {"setting" if sections else "section"}: {suggestion(name, names)}'
    # pydantic puts a prefix before the messages of our own validators that does not help a user.
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
        text = '; '.join(lines)
        raise ConfigurationError(f'These settings cannot be used: {text}{"" if text.endswith("?") else "."}') from error
