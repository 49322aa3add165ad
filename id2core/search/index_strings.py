"""Strings of compressed indexes: those of FAISS's index factory whose sizes follow by formulas.

    RR448,IVF2048,RaBitQ          rotation to 448 numbers, 2,048 lists, a bit for each number: 64 bytes
    OPQ120_480,IVF2048,PQ120x4    120 groups of 4 numbers, 4 bits each: 60 bytes
    OPQ64_448,IVF2048,PQ64np      64 groups of 7 numbers, 8 bits each: 64 bytes

A string has the order of FAISS: a rotation, which may be left out, the lists, and the code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from id2core.errors import SearchError

EXAMPLES: Final = (
    "a rotation (RRn, PCARn, OPQg_n, or none), IVFn lists, and a code (RaBitQ, PQgx4, or PQgnp), as in "
    "RR448,IVF1024,RaBitQ, OPQ120_480,IVF1024,PQ120x4, or OPQ64_448,IVF1024,PQ64np"
)
_STRING: Final = re.compile(
    r"((?P<rotation>OPQ(?P<blocks>\d{1,9})_|RR|PCAR)(?P<size>\d{1,9}),)?IVF(?P<lists>\d{1,9}),"
    r"(RaBitQ|PQ(?P<groups>\d{1,9})(?P<bits>x4|np))",
    re.ASCII,
)
# Bits of the code of a group → kind of code.
_CODES: Final = {1: "rabitq", 4: "pqx4", 8: "pqnp"}
# Bytes beside the bits of a RaBitQ code: two numbers that correct its score.
_FACTORS: Final = 8
# Descriptors of each list, or centroid of a group, that a sample should have, and must have: FAISS warns of
# fewer.
_EACH_LIST: Final = 64
_LEAST_EACH_LIST: Final = 39
# What 256 centroids of a group, and a rotation that is learned, should be trained on.
_LEAST_SAMPLE: Final = 16_384
# Most lists: the number of a list is stored in two bytes.
_MOST_LISTS: Final = 2**16
_ROW_BYTES: Final = 8
# Bytes of the class of a reference in a shard.
_CLASS_BYTES: Final = 8


@dataclass(frozen=True)
class Compressed:
    """A compressed index, by its string.

    Attributes:
        text: the string.
        rotation: kind of the rotation; None for none.
        size: numbers of a rotated descriptor; None where they are those of a descriptor.
        lists: how many lists the descriptors are shared out among.
        groups: of numbers that have a code together; None for a bit for each number.
        bits: of the code of a group.
    """

    text: str
    rotation: str | None
    size: int | None
    lists: int
    groups: int | None
    bits: int

    @property
    def code(self) -> str:
        """Kind of the code: `rabitq`, `pqx4`, or `pqnp`."""
        return _CODES[self.bits]

    def code_bytes(self, descriptor_size: int) -> int:
        """Return the bytes of the code of a descriptor of m numbers, without the number of its list."""
        if self.groups:
            return -(-self.groups * self.bits // 8)
        return -(-self.rotated_size(descriptor_size) // 8) + _FACTORS

    def stored_bytes(self, descriptor_size: int) -> int:
        """Return the bytes of a descriptor of m numbers in the data set: its code, and its list."""
        return self.code_bytes(descriptor_size) + math.ceil(math.log2(self.lists) / 8)

    def row_bytes(self, descriptor_size: int) -> int:
        """Return the bytes that a reference takes in the memory of a worker, while a shard is made.

        A code lies there twice: as it is stored, and as it is searched. So does the number of its row. Its
        class lies there once.
        """
        return 2 * (self.code_bytes(descriptor_size) + _ROW_BYTES) + _CLASS_BYTES

    def model_bytes(self, descriptor_size: int) -> int:
        """Return the bytes of what is trained: centroids of lists and groups, and the rotation."""
        size = self.rotated_size(descriptor_size)
        # FAISS keeps the whole matrix of a PCA beside the part that it uses.
        columns = (size if self.rotation else 0) + (descriptor_size if self.rotation == "PCAR" else 0)
        groups = 2**self.bits * size if self.groups else 0
        return 4 * (self.lists * size + descriptor_size * columns + groups)

    @property
    def sample(self) -> int:
        """How many descriptors it is trained on, where there are so many."""
        return max(_EACH_LIST * self.lists, _LEAST_SAMPLE)

    @property
    def least_sample(self) -> int:
        """How many descriptors it needs at least."""
        return max(_LEAST_EACH_LIST * self.lists, self._least_of_codes, self._least_of_rotation)

    def _smaller(self, references: int) -> str:
        """Return what could be trained on so few references in place of this index."""
        lists = references // _LEAST_EACH_LIST
        if self.lists > lists:
            return f"at most {lists} lists, or " if lists and self._least_of_codes <= references else ""
        if self._least_of_rotation > references:
            return "the rotation RR…, or "
        return "RaBitQ or PQ…x4, or " if self.bits == 8 else "RaBitQ, or "

    @property
    def _least_of_rotation(self) -> int:
        """As many as it has components: fewer have no so many."""
        return (self.size or 0) if self.rotation == "PCAR" else 0

    @property
    def _least_of_codes(self) -> int:
        return _LEAST_EACH_LIST * 2**self.bits if self.groups else 0

    def check_size(self, descriptor_size: int) -> None:
        """Raise SearchError where descriptors of m numbers do not fit the string."""
        size = self.rotated_size(descriptor_size)
        if size > descriptor_size:
            raise SearchError(
                f"index {self.text!r}: descriptors have {descriptor_size} numbers, and a rotation makes no "
                f"more. Take {self.rotation}… to {descriptor_size} numbers or fewer"
            )
        if self.groups and size % self.groups:
            raise SearchError(
                f"index {self.text!r}: {self.groups} groups cannot share out {size} numbers evenly"
            )

    def check(self, descriptor_size: int, references: int, memory: int) -> None:
        """Refuse what cannot be built, before anything is read.

        Args:
            descriptor_size: m, numbers of a descriptor.
            references: how many there are.
            memory: bytes that a worker may take.

        Raises:
            SearchError: descriptors of m numbers do not fit the string, there are too few to train on, or
                training needs more memory.
        """
        self.check_size(descriptor_size)
        if references < self.least_sample:
            raise SearchError(
                f"index {self.text!r} is trained on {self.least_sample:,} references or more, and there are "
                f"{references:,}: take {self._smaller(references)}flat"
            )
        taken = self.training_bytes(descriptor_size, references)
        if taken > memory:
            raise SearchError(
                f"training index {self.text!r} takes {-(-taken >> 20):,} MiB, and a worker may take "
                f"{memory >> 20:,}: take fewer lists, or a larger --shard-memory"
            )

    def training_bytes(self, descriptor_size: int, references: int) -> int:
        """Return the bytes that training on so many references takes, of m numbers each."""
        # The sample lies there twice: as it is, and rotated.
        return 2 * 4 * descriptor_size * min(self.sample, references) + self.model_bytes(descriptor_size)

    def rotated_size(self, descriptor_size: int) -> int:
        """Return the numbers of a descriptor of m numbers after the rotation."""
        return self.size or descriptor_size


def parse(name: str) -> Compressed:
    """Return the index of a string.

    Raises:
        SearchError: there is no such index.
    """
    found = _STRING.fullmatch(name)
    if found is None:
        raise SearchError(f"no index {name!r}: choose flat, or {EXAMPLES}")
    if not 0 < int(found["lists"]) <= _MOST_LISTS:
        raise SearchError(f"index {name!r}: IVF takes from 1 to {_MOST_LISTS:,} lists")
    groups = int(found["groups"]) if found["groups"] else None
    if groups == 0 or found["size"] == "0":
        raise SearchError(f"index {name!r}: a rotation to 0 numbers, or 0 groups, leaves nothing")
    if found["blocks"] and found["blocks"] != found["groups"]:
        raise SearchError(f"index {name!r}: OPQ rotates for the groups of PQ, so give both the same number")
    bits = {"x4": 4, "np": 8, None: 1}[found["bits"]]
    rotation = found["rotation"] and re.sub(r"\d+_", "", found["rotation"])
    size = int(found["size"]) if found["size"] else None
    return Compressed(name, rotation, size, int(found["lists"]), groups, bits)
