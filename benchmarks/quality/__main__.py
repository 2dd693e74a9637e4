"""Print the quality table and draw its pictures.

    python -m benchmarks.quality [-o FOLDER] [--rows 484 defocus ...] [--all-epochs] [--star FOLDER]
                                [--ptychi PYTHON]

The solver's rows refine a simulated scan from a flat object, those of the name sparse-OVERLAP-PHOTONS four objects each
with little overlap; ``--all-epochs`` does not let them stop when they are done. The network's rows (transfer, warm,
sparse, lines, robust, patch) train first and take minutes each. ``--star`` adds the measured star (a folder with
diffraction.h5, product.h5 and reference.h5). ``--ptychi`` names the Python of an environment that has pty-chi, and adds
LSQ-ML to the solver's rows and the star. Times are wall seconds of this machine, threads as printed; SSIM is of
amplitude / phase in the well illuminated rectangle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from .networks import School, lines, patch, robustness, sparse, transfer, warm_start
from .refined import refined
from .scans import ROWS
from .sparse import SPARSE_ROWS, sparse_lines
from .star import network_lines, star_lines
from .table import HEAD, Line

Lines = Callable[[], Iterator[Line]]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.quality', description=__doc__)
    parser.add_argument('-o', '--output', type=Path, default=Path('build/quality'))
    parser.add_argument('--rows', nargs='*', help='keys of rows; all if not given')
    parser.add_argument('--all-epochs', action='store_true', help='never stop before the last epoch')
    parser.add_argument('--star', type=Path)
    parser.add_argument('--ptychi', type=Path)
    parsed = parser.parse_args()
    parsed.output.mkdir(parents=True, exist_ok=True)
    makers = _makers(parsed.output, parsed.ptychi, parsed.star, all_epochs=parsed.all_epochs)
    chosen = parsed.rows or list(makers)
    if unknown := [key for key in chosen if key not in makers]:
        parser.error(f'no rows {", ".join(unknown)}: choose from {", ".join(makers)}')
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{HEAD}')
    for key in chosen:
        for line in makers[key]():
            print(line, flush=True)


def _makers(output: Path, ptychi: Path | None, star: Path | None, *, all_epochs: bool) -> dict[str, Lines]:
    school = School(output)
    makers: dict[str, Lines] = {row.key: partial(refined, row, output, ptychi, all_epochs=all_epochs) for row in ROWS}
    makers |= {key: partial(sparse_lines, row, all_epochs=all_epochs) for key, row in SPARSE_ROWS.items()}
    makers['transfer'] = partial(transfer, school, output)
    makers['warm'] = partial(warm_start, school)
    makers['sparse'] = partial(sparse, school, output)
    makers['lines'] = partial(lines, school, output)
    makers['patch'] = partial(patch, school, output)
    makers['robust'] = partial(robustness, school)
    if star is not None:
        makers['star'] = partial(star_lines, star, output, ptychi, all_epochs=all_epochs)
        makers['star-network'] = partial(network_lines, star, output)
    return makers


if __name__ == '__main__':
    main()
