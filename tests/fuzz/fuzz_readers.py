"""Coverage-guided fuzzing of everything that reads foreign files, for a bounded time.

    python tests/fuzz/fuzz_readers.py [model|scan|configuration|json|patterns|product|resume] -max_total_time=60

Needs atheris (``pip install atheris``); nothing else in the project does. Options after the name of the target are
those of libFuzzer. The run starts from good files and the corpus of hostile ones, in a folder that is removed
afterwards. Content that makes a reader end with an error of another package goes into the working folder as
``crash-*``.

HDF5 is read in forked processes: a crash or a hang of the HDF5 library is refused with a sentence, as in the package.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(
    include=['ptychopinn_torch_plugin', 'json', 'zipfile', 'yaml', 'numpy.lib'], enable_loader_override=False
):
    import ptychopinn_torch_plugin.compat.names
    import ptychopinn_torch_plugin.data.io.npz
    import ptychopinn_torch_plugin.data.io.workflow_folder
    import ptychopinn_torch_plugin.storage.model_file
    import ptychopinn_torch_plugin.storage.tensor_file  # noqa: F401 - instrumented here

from tests.fuzz import corpus, targets
from tests.helpers.host_scans import write_workflow_folder

MAX_SEED_BYTES = 100_000
OPTIONS = ('-timeout=20', '-rss_limit_mb=4096', '-malloc_limit_mb=2048', '-max_len=65536', '-print_final_stats=1')

Prepared = tuple[targets.Target, str, Iterable[bytes]]


def model(_folder: Path, marker: Path) -> Prepared:
    """The model file."""
    groups = (
        corpus.hostile_tables(),
        corpus.hostile_tensors(),
        corpus.hostile_headers(),
        corpus.foreign_files(marker),
    )
    files = (content for group in groups for content in group.values())
    return targets.read_model, 'model.safetensors', (corpus.good_model_file(), *files)


def scan(_folder: Path, marker: Path) -> Prepared:
    """The training file."""
    return targets.read_scan, 'scan.npz', (corpus.good_training_file(), *corpus.hostile_training_files(marker).values())


def configuration(_folder: Path, _marker: Path) -> Prepared:
    """The configuration in YAML."""
    return targets.read_configuration, 'names.yaml', (text.encode() for text in corpus.configurations())


def configuration_json(_folder: Path, _marker: Path) -> Prepared:
    """The configuration in JSON."""
    return targets.read_configuration, 'names.json', (json.dumps(tree).encode() for tree in corpus.CONFIGURATIONS)


def patterns(folder: Path, _marker: Path) -> Prepared:
    """The patterns of a workflow folder."""
    write_workflow_folder(folder)
    return targets.read_folder, 'diffraction.h5', corpus.diffraction_files(folder)


def product(folder: Path, _marker: Path) -> Prepared:
    """The product of a workflow folder."""
    write_workflow_folder(folder)
    return targets.read_folder, 'product.h5', [(folder / 'product.h5').read_bytes()]


def resume(folder: Path, _marker: Path) -> Prepared:
    """The resume state of a training run."""
    target, state = targets.resume_reader(folder)
    return target, 'resume.safetensors', (state, *corpus.damaged_resume_states(state).values())


TARGETS: dict[str, Callable[[Path, Path], Prepared]] = {
    'model': model,
    'scan': scan,
    'configuration': configuration,
    'json': configuration_json,
    'patterns': patterns,
    'product': product,
    'resume': resume,
}


def fuzz(name: str, options: list[str], folder: Path) -> None:
    """Fuzz the target ``name`` in ``folder``; libFuzzer ends the process when the time is over."""
    marker = folder / 'pickle-was-run'
    place = folder / 'files'
    start = folder / 'corpus'
    place.mkdir()
    start.mkdir()
    target, file_name, seeds = TARGETS[name](place, marker)
    for number, content in enumerate(seeds):
        if len(content) <= MAX_SEED_BYTES:
            (start / f'{number:04d}').write_bytes(content)

    def read(content: bytes) -> None:
        (place / file_name).write_bytes(content)
        target(place / file_name)
        if marker.exists():
            raise AssertionError('Code of the file was run.')

    atheris.Setup([sys.argv[0], *OPTIONS, *options, str(start)], read)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz the target named first, by default the model file; returns the exit code of the run."""
    name = arguments[0] if arguments and not arguments[0].startswith('-') else 'model'
    options = [argument for argument in arguments if argument.startswith('-')]
    logging.disable()
    warnings.simplefilter('ignore')
    with TemporaryDirectory(prefix='ptychopinn-fuzz-') as folder:
        child = os.fork()  # libFuzzer ends its process without cleaning up: this one does
        if child == 0:
            fuzz(name, options, Path(folder))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
