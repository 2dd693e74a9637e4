"""Seeded mutations of files, for test runs without a fuzzer."""

from __future__ import annotations

import random
from collections.abc import Iterator

_TELLING = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def mutations(content: bytes, number: int, seed: int, *, front: int) -> Iterator[bytes]:
    """Yield ``number`` mutated copies of ``content``; half of the changes fall on its first ``front`` bytes."""
    source = random.Random(seed)  # noqa: S311 - reproducible, not secret
    for _ in range(number):
        changed = bytearray(content)
        for _ in range(source.choice((1, 1, 2, 5, 20))):
            _mutate(changed, source, front)
        yield bytes(changed)


def _mutate(content: bytearray, source: random.Random, front: int) -> None:
    reach = front if source.random() < 0.5 else len(content)
    at = source.randrange(max(1, min(reach, len(content))))
    length = source.choice((1, 2, 8, 64))
    match source.randrange(7):
        case 0:
            content[at : at + 1] = bytes([source.randrange(256)])
        case 1 if content:
            content[min(at, len(content) - 1)] ^= 1 << source.randrange(8)
        case 2:
            del content[at : at + length]
        case 3:
            content[at:at] = content[at : at + length]
        case 4:
            content[at : at + 8] = source.choice(_TELLING).to_bytes(8, 'little')
        case 5:
            content[at : at + 1] = source.choice(
                (b'-', b'9' * 20, b'"', b'{', b'[', b']', b',', b'NaN', b'1e400', b'\x00')
            )
        case _:
            other = source.randrange(max(1, len(content)))
            content[at : at + length] = content[other : other + length]
