"""Coverage-guided fuzzing of the two readers of foreign files, for a bounded time.

    python tests/fuzz/fuzz_model_file.py [model|scan] -max_total_time=60

Needs atheris (``pip install atheris``); nothing else in the project does. Options after the target's name are those of
libFuzzer. The run starts from the good file and the corpus of hostile ones, in a folder that is gone afterwards; what
makes a reader leave with an error that is not our own is written to the working folder as ``crash-*``.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(
    include=['ptychopinn_torch_plugin', 'json', 'zipfile', 'numpy.lib'], enable_loader_override=False
):
    import ptychopinn_torch_plugin.data.io.npz
    import ptychopinn_torch_plugin.storage.model_file
    import ptychopinn_torch_plugin.storage.tensor_file  # noqa: F401 - instrumented here

from tests.fuzz import corpus
from tests.fuzz.mutations import read_model, read_scan

MAX_SEED_BYTES = 100_000
OPTIONS = ('-timeout=10', '-rss_limit_mb=2048', '-malloc_limit_mb=1024', '-max_len=65536', '-print_final_stats=1')


def seeds(target: str, marker: Path) -> list[bytes]:
    """Files to start from: the good one, and the small ones of the corpus."""
    if target == 'scan':
        files = [corpus.good_training_file(), *corpus.hostile_training_files(marker).values()]
    else:
        groups = (
            corpus.hostile_tables(),
            corpus.hostile_tensors(),
            corpus.hostile_headers(),
            corpus.foreign_files(marker),
        )
        files = [corpus.good_model_file(), *(content for group in groups for content in group.values())]
    return [content for content in files if len(content) <= MAX_SEED_BYTES]


def fuzz(target: str, options: list[str], folder: Path) -> None:
    """Fuzz ``target`` in ``folder``; libFuzzer ends the process when the time is over."""
    reader: Callable[[Path], object] = {'model': read_model, 'scan': read_scan}[target]
    path = folder / ('model.safetensors' if target == 'model' else 'scan.npz')
    marker = folder / 'pickle-was-run'
    start = folder / 'corpus'
    start.mkdir()
    for number, content in enumerate(seeds(target, marker)):
        (start / f'{number:04d}').write_bytes(content)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        reader(path)
        if marker.exists():
            raise AssertionError('Code of the file was run.')

    atheris.Setup([sys.argv[0], *OPTIONS, *options, str(start)], read)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz the target named first, by default the model file; returns the exit code of the run."""
    target = arguments[0] if arguments and not arguments[0].startswith('-') else 'model'
    options = [argument for argument in arguments if argument.startswith('-')]
    logging.disable()
    warnings.simplefilter('ignore')
    with TemporaryDirectory(prefix='ptychopinn-fuzz-') as folder:
        child = os.fork()  # libFuzzer leaves without cleaning up: the parent does
        if child == 0:
            fuzz(target, options, Path(folder))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
