"""The table of names, written from the code: ``python -m ptychopinn_torch_plugin.compat > FILE``."""

from __future__ import annotations

from .names import NAMES

_HEADINGS = {
    'model': 'Model',
    'training': 'Training',
    'inference': 'Inference',
    'execution': 'Execution',
    'further': 'Names of this package in the same place',
}

_INTRODUCTION = """\
# Configuration names

`ptychopinn_torch_plugin.compat.configuration_from` takes PtychoPINN's names (a mapping, dataclass instances, a YAML or
JSON file) and sets the fields of this package's frozen tree. Every name below is honoured or refused with the reason; a
name that is not below is refused. "nothing" means that the one value this package can honour is what it does anyway.

The inference names `n_groups`, `n_subsample`, `subsample_seed`, `neighbor_count`, `test_data_file` and `output_dir` are
those of training, and stand there. A name without a value (`None`) counts as not given. `n_images` warns once.

This page is written by `python -m ptychopinn_torch_plugin.compat`; a test compares the two.
"""


def names_table() -> str:
    """The page ``docs/configuration-names.md``, Markdown."""
    lines = [_INTRODUCTION]
    for section, heading in _HEADINGS.items():
        lines += [f'## {heading}', '', '| name | sets | how |', '| --- | --- | --- |']
        for row in NAMES:
            if row.section == section:
                sets = ', '.join(f'`{part}`' if '.' in part else part for part in row.becomes.split(', '))
                lines.append(f'| `{row.name}` | {sets} | {row.meaning} |')
        lines.append('')
    return '\n'.join(lines)
