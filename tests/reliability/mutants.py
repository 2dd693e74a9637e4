"""Mutation testing: change one operator, number or condition of the package at a time, and see whether a test fails.

    python tests/reliability/mutants.py [--minutes 30] [--mutants 400] [--seed 0] [--only physics/]

cosmic-ray makes the mutants. A sample of them, drawn with a fixed seed, is tested in a copy of the tree, each by the
quick tests of its module (``mutated_modules.json``) in a fork of a process that has imported the large packages. Those
tests must pass without a mutant first; the time that they take then sets the time limit of a mutant. The result is
written to ``mutation.md``, and from there into ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = 'ptychopinn_torch_plugin'
DOCUMENT = ROOT / 'docs' / 'reliability.md'
SECTION = HERE / 'mutation.md'
EQUIVALENT = HERE / 'equivalent_mutants.json'
HEADING = '## Mutation testing'

MODULES = json.loads((HERE / 'mutated_modules.json').read_text(encoding='utf-8'))
TESTS: dict[str, tuple[str, ...]] = {name: tuple(tests) for name, tests in MODULES['tests'].items()}
"""The quick tests of each module; the longest name that the path of a module begins with counts."""
LEFT_OUT = tuple(MODULES['left out'])

PRELOADED: tuple[str, ...] = ('torch', 'lightning.pytorch', 'numba', 'scipy.ndimage', 'scipy.optimize', 'h5py')
PRELOADED += ('scipy.spatial', 'hypothesis', 'matplotlib', 'pydantic', 'safetensors.torch', 'psutil', 'skimage.metrics')
PRELOADED += ('pytest_timeout', 'ptychodus.api.product', 'ptychodus.api.reconstruct')

PLUGINS = ('-p', 'no:cacheprovider', '-p', 'pytest_timeout')
"""Others are not loaded: that would take longer than most tests."""

LIMIT_FACTOR, SHORTEST_LIMIT_S = 5.0, 30.0
"""A mutant may take so many times as long as the tests take without one, and at least so many seconds."""
COMPILATION_S = 240.0
"""A mutant in compiled code may take so many seconds more."""


class Mutant(NamedTuple):
    """One change of one module."""

    module: str
    """Path from the root of the repository."""
    line: int
    before: str
    after: str
    source: str
    """The whole changed module."""


@dataclass
class Result:
    """What came of the sample."""

    drawn: int
    all_mutants: int
    killed: Counter[str]
    timed_out: int
    survivors: list[Mutant]
    failing: set[tuple[str, ...]]
    """Tests that fail without a mutant: their modules are left out."""


def main() -> int:
    """Test a sample of mutants and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30.0, help='when these are over, no further mutant is begun')
    parser.add_argument('--mutants', type=int, default=400, help='size of the sample')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default='', help='modules whose path in the package begins with this; not written')
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    with TemporaryDirectory(prefix='mutants-') as folder:
        copy_tree(Path(folder))
        os.chdir(folder)
        os.environ |= {'PYTHONPATH': folder, 'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1'}
        # As in the tests: set before torch is imported, because threads that spin starve the others.
        os.environ |= {'OMP_WAIT_POLICY': 'PASSIVE', 'QT_QPA_PLATFORM': 'offscreen', 'MPLBACKEND': 'Agg'}
        os.environ |= {'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1', 'PYDANTIC_DISABLE_PLUGINS': '1'}
        sys.path[0], sys.dont_write_bytecode = folder, True
        result = run(options, deadline)
    text = document(result, options.seed)
    print(text)
    if not options.only:
        SECTION.write_text(text, encoding='utf-8')
        renew_document(text)
    return 1 if result.failing else 0


def copy_tree(folder: Path) -> None:
    """Copy the tracked files and numba's cache of the kernels, which fits as long as the files keep their times."""
    git = shutil.which('git') or 'git'
    listed = subprocess.run([git, 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    compiled = [str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob('*.nb[ic]')]
    for name in filter(None, [*listed.split('\0'), *compiled]):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run(options: argparse.Namespace, deadline: float) -> Result:
    """Test the mutants of the sample, in the working folder, until the time is over."""
    modules = [path for path in sorted(Path(PACKAGE).rglob('*.py')) if tests_of(path)]
    modules = [path for path in modules if str(path.relative_to(PACKAGE)).startswith(options.only)]
    with use_db('mutants.sqlite', WorkDB.Mode.create) as database:
        init(modules, database, {})
        specs = [item.mutations[0] for item in database.work_items]
    specs.sort(key=lambda one: (str(one.module_path), one.operator_name, one.occurrence))
    random.Random(options.seed).shuffle(specs)  # noqa: S311 - a sample, not a secret
    for name in PRELOADED:
        importlib.import_module(name)
    result = Result(0, len(specs), Counter(), 0, [], set())
    limits: dict[tuple[str, ...], float] = {}
    for mutant in mutants(specs):
        if result.drawn == options.mutants or time.monotonic() > deadline:
            break
        path, tests = Path(mutant.module), tests_of(Path(mutant.module))
        if tests in result.failing:
            continue
        if tests not in limits:
            begun = time.monotonic()
            if outcome(tests, 600) != 0:
                print(f'These tests fail or hang without a mutant: {" ".join(tests)}', file=sys.stderr, flush=True)
                result.failing.add(tests)
                continue
            took = time.monotonic() - begun
            limits[tests] = max(SHORTEST_LIMIT_S, LIMIT_FACTOR * took)
            print(f'{took:.1f} s without a mutant: {" ".join(tests)}', file=sys.stderr, flush=True)
        with changed(path, mutant):
            code = outcome(tests, limits[tests] + COMPILATION_S * is_compiled(mutant))
        result.drawn += 1
        result.timed_out += code is None
        result.killed[room(path)] += code != 0
        if code == 0:
            result.survivors.append(mutant)
        word = {0: 'SURVIVED', None: 'time limit'}.get(code, 'killed')
        print(f'{word}: {path}:{mutant.line}: {mutant.before} -> {mutant.after}', file=sys.stderr, flush=True)
    return result


@contextmanager
def changed(path: Path, mutant: Mutant) -> Iterator[None]:
    """Give a module the text of a mutant for a while.

    Numba compiles all functions of a module again when size or time of its file differ. So a module with compiled
    functions keeps both, and only the functions that the mutant changes are removed from the cache.
    """
    original, times, cache = path.read_bytes(), path.stat(), path.parent / '__pycache__'
    kept = {file: file.read_bytes() for file in cache.glob(f'{path.stem}.*.nb[ic]')}
    path.write_bytes(mutant.source.encode())
    if is_compiled(mutant):
        path.write_bytes(of_length(mutant.source.encode(), len(original)))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for file in cache.glob(f'{path.stem}.{function_used_once(mutant)}-*.nb[ic]'):
            file.unlink()
    try:
        yield
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for file in set(cache.glob(f'{path.stem}.*.nb[ic]')) - kept.keys():
            file.unlink()
        for file, content in kept.items():
            file.write_bytes(content)


def is_compiled(mutant: Mutant) -> bool:
    """Return whether the module of a mutant has functions that numba compiles."""
    return '@compiled' in mutant.source


def of_length(source: bytes, length: int) -> bytes:
    """Return a module with a comment at its end, or without the first letters of its docstring."""
    docstring, surplus = source.index(b'"""') + 3, len(source) - length
    if surplus > source.index(b'\n') - docstring:
        return source
    return source[:docstring] + source[docstring + surplus :] if surplus > 0 else source + b'#' * -surplus


def function_used_once(mutant: Mutant) -> str:
    """Return the name of the function that a mutant changes; a pattern for all where others of its module use it."""
    for node in ast.parse(mutant.source).body:
        if isinstance(node, ast.FunctionDef) and node.lineno <= mutant.line <= (node.end_lineno or 0):
            return node.name if len(re.findall(rf'\b{node.name}\(', mutant.source)) == 1 else '*'
    return '*'


def tests_of(path: Path) -> tuple[str, ...]:
    """Return the tests of a module of the package; nothing where it is not mutated."""
    name = str(path.relative_to(PACKAGE).with_suffix(''))
    if name.startswith(LEFT_OUT):
        return ()
    return max(((len(key), tests) for key, tests in TESTS.items() if name.startswith(key)), default=(0, ()))[1]


def room(path: Path) -> str:
    """Return the folder of the package that a module is in, or its name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def mutants(specs: list[MutationSpec]) -> Iterator[Mutant]:
    """Make the mutants, without those that change annotations only: nothing evaluates these, as all are postponed.

    Equivalent mutants are left out, too; they are listed with the reasons in ``equivalent_mutants.json``.
    """
    equivalent = {(one['module'], one['before'], one['after']) for one in json.loads(EQUIVALENT.read_text())}
    for spec in specs:
        source = Path(spec.module_path).read_text(encoding='utf-8')
        operator = get_operator(spec.operator_name)(**(spec.operator_args or {}))
        mutated = mutate_code(source, operator, spec.occurrence)
        if mutated is None or without_annotations(mutated) == without_annotations(source):
            continue
        changed = [
            line
            for line in difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm='')
            if line[0] in '+-' and line[:3] not in ('+++', '---')
        ]
        before = ' '.join(line[1:].strip() for line in changed if line[0] == '-')
        after = ' '.join(line[1:].strip() for line in changed if line[0] == '+')
        if (str(spec.module_path), before, after) not in equivalent:
            yield Mutant(str(spec.module_path), spec.start_pos[0], before, after, mutated)


def without_annotations(source: str) -> str:
    """Return the tree of a module as text, less its annotations and strings that stand alone."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def outcome(tests: tuple[str, ...], limit_s: float) -> int | None:
    """Run tests in a fork and return the exit code of pytest; None where the time limit ended them."""
    child = os.fork()
    if child == 0:
        os.setsid()
        log = os.open('pytest.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 70
        try:
            code = int(pytest.main(['-q', '-x', '-m', 'not slow', *PLUGINS, *tests]))
        finally:
            os._exit(code)
    deadline = time.monotonic() + limit_s
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the fork, and what its tests have left
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def document(result: Result, seed: int) -> str:
    """Return the section of the document."""
    killed = result.killed.total()
    lines = [
        HEADING,
        '',
        'Written by `make mutants` with cosmic-ray: one operator, number, condition, decorator or loop of the package '
        'is changed at a time, and the quick tests of that module run. A mutant is killed if one of them fails, or if '
        'they take five times as long.',
        '',
        f'**{killed} of {result.drawn} mutants killed ({100 * killed / max(result.drawn, 1):.0f} %)**, '
        f'{result.timed_out} of them by the time limit; a sample (seed {seed}) of {result.all_mutants} mutants.',
        '',
        '| room | killed | survived |',
        '| --- | --- | --- |',
    ]
    if failing := sorted({name for tests in result.failing for name in tests}):
        sentence = f'One of these tests fails without a mutant, so their modules are left out: {", ".join(failing)}.'
        lines[-2:-2] = [sentence, '']
    survived = Counter(room(Path(one.module)) for one in result.survivors)
    lines += [
        f'| {name} | {result.killed[name]} | {survived[name]} |' for name in sorted(result.killed.keys() | survived)
    ]
    if result.survivors:
        lines += ['', '| survivor | before | after |', '| --- | --- | --- |']
        for one in sorted(result.survivors):
            name = one.module.removeprefix(f'{PACKAGE}/')
            lines.append(f'| {name}:{one.line} | {code_cell(one.before)} | {code_cell(one.after)} |')
    if equivalent := json.loads(EQUIVALENT.read_text(encoding='utf-8')):
        lines += ['', 'Equivalent mutants, which no test can kill, are left out of the sample:', '']
        lines += ['| module | before | after | reason |', '| --- | --- | --- | --- |']
    for entry in equivalent:
        name = entry['module'].removeprefix(f'{PACKAGE}/')
        lines.append(f'| {name} | {code_cell(entry["before"])} | {code_cell(entry["after"])} | {entry["reason"]} |')
    return '\n'.join(lines) + '\n'


def code_cell(code: str) -> str:
    """Return code as a cell of a table."""
    return '`' + code.replace('|', '\\|') + '`' if code else '(nothing)'


def renew_document(section: str) -> None:
    """Replace the section in the document of the reliability tests, which ``make reliability`` writes from the file."""
    text = DOCUMENT.read_text(encoding='utf-8')
    pattern = re.compile(rf'^{re.escape(HEADING)}\n.*?(?=^## |\Z)', re.DOTALL | re.MULTILINE)
    before, *after = pattern.split(text, maxsplit=1)
    text = '\n\n'.join(part.strip() for part in (before, section, *after) if part.strip())
    DOCUMENT.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main())
