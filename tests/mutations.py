"""Picture files, damaged at random by a seed: the same seed gives the same file."""

from __future__ import annotations

import random

from tests.broken import good_files

# Values at which lengths, counts and sizes tend to overflow.
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Half of the damage goes to the first bytes, where a format keeps its structure.
HEAD = 200


def mutated(seed: int) -> tuple[str, bytes]:
    """The name of a good file, and that file with one to eight faults."""
    rng = random.Random(seed)
    names = sorted(good_files())
    name = names[seed % len(names)]
    data = bytearray(good_files()[name])
    for _ in range(rng.randint(1, 8)):
        _damage(data, rng)
    return name, bytes(data)


def _damage(data: bytearray, rng: random.Random) -> None:
    if not data:
        return
    end = min(HEAD, len(data)) if rng.random() < 0.5 else len(data)
    place, length = rng.randrange(end), rng.choice((1, 2, 4))
    match rng.randrange(6):
        case 0:
            data[place] ^= 1 << rng.randrange(8)
        case 1:
            data[place : place + length] = rng.randbytes(length)
        case 2:
            number = rng.choice(EXTREMES) & (1 << 8 * length) - 1
            data[place : place + length] = number.to_bytes(length, rng.choice(("little", "big")))
        case 3:
            del data[place : place + rng.randrange(1, 64)]
        case 4:
            data[place:place] = data[place : place + rng.randrange(1, 64)]
        case _:
            if rng.random() < 0.3:
                del data[place:]
