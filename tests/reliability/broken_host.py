"""Start Ptychodus with this package broken: a program, started by ``test_host_safety.py``.

Reads a list of cases as JSON from the standard input. The host is imported once and forked for each case, before
anything of this package is imported; every child leaves ``log.txt`` and ``answer.json`` in its case's folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import ptychodus.model  # before the forks: the import takes most of the time
from ptychodus.api.reconstruct import NullReconstructor, ReconstructInput, ReconstructOutput

OURS = 'ptychopinn (pytorch)'


def yield_the_input(self: NullReconstructor, parameters: ReconstructInput) -> Iterator[ReconstructOutput]:
    """What the placeholders for algorithms that are not installed do here: hand the product back."""
    yield ReconstructOutput(parameters.product, 1)


def run_host(folder: Path) -> dict[str, object]:
    """Start the host; reconstruct with one of its own algorithms, then with our "Refine" if it is listed."""
    settings = folder / 'settings.ini'
    codes: dict[str, str] = {}
    with ptychodus.model.ModelCore(settings if settings.is_file() else None) as model:
        algorithm = model.processing_core.algorithm_parameter
        keys = list(algorithm.available_reconstructors())
        other = next(key for key in keys if not key.startswith(OURS))
        for name, key in (('other', other), ('refine', f'{OURS}_refine')):
            if key in keys:
                algorithm.set_value(key)
                codes[name] = model.batch_mode_execute('reconstruct', folder, folder / name).name
    return {'keys': keys, 'codes': codes}


def run_case(case: dict[str, str]) -> None:
    """Break the package, then run the host; the output goes into the folder."""
    folder = Path(case['folder'])
    descriptor = os.open(folder / 'log.txt', os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(name)s: %(message)s')
    # Lists placeholders for what is not installed.
    logging.getLogger('ptychodus.model.core').setLevel(logging.DEBUG)
    NullReconstructor.reconstruct = yield_the_input  # type: ignore[method-assign]
    if case['path']:
        sys.path.insert(0, case['path'])
        os.environ['PYTHONPATH'] = os.pathsep.join([case['path'], os.environ['PYTHONPATH']])
    exec(case['breakage'], {})  # noqa: S102 - code of the test
    (folder / 'answer.json').write_text(json.dumps(run_host(folder)))


def main() -> None:
    """Run the cases, one process each."""
    assert not any(name.startswith('ptychopinn_torch_plugin') for name in sys.modules)
    for case in json.load(sys.stdin):
        pid = os.fork()
        if pid == 0:
            try:
                run_case(case)
            except BaseException:  # the log tells, and the test misses the answer
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(pid, 0)


if __name__ == '__main__':
    main()
