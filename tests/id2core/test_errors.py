from __future__ import annotations

import pytest

from id2core.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢.jpg", "plain é 漢.jpg"),
        ("one\n  two\r\nthree", "one two three"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("half \udce9", "half \\udce9"),
    ],
)
def test_what_others_wrote_stays_on_one_line_and_controls_nothing(text: str, shown: str) -> None:
    assert printable(text) == shown and printable(text).isprintable()
