r"""The spelling of local file names in URIs: valid UTF-8, reversible, and unchanged for ordinary names.

A URI is stored in Parquet and JSON, which hold UTF-8 alone. A file's name may be any bytes:

    caf\xe9.jpg, the byte E9     →  caf\xe9.jpg      four characters: backslash, x, e, 9
    x\xff.bmp, four characters   →  x\x5cxff.bmp     its backslash is spelled out
    a\b.jpg                      →  a\b.jpg          no escape, so it stays

Only `\x5c` and `\x80` to `\xff` are escapes. Two names never share a spelling, also not two Unicode
normalizations of one word.
"""

from __future__ import annotations

import os
import re

_ESCAPE = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")
_LOOKS_ESCAPED = re.compile(rb"\\(?=x(5c|[89a-f][0-9a-f]))")


def spell(path: str | os.PathLike[str]) -> str:
    """Return the spelling of a path that the operating system gave."""
    raw = os.fsencode(path)
    if b"\\" in raw:
        raw = _LOOKS_ESCAPED.sub(rb"\\x5c", raw)
    return raw.decode(errors="backslashreplace")


def native(spelled: str) -> str:
    """Return the path that a spelling stands for, as `open` takes it."""
    if "\\" not in spelled:
        return spelled
    raw = os.fsencode(spelled)
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), raw))


def as_text(value: str) -> str:
    """Return an argument of a command as valid Unicode: bytes that are not UTF-8 are spelled out."""
    return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
