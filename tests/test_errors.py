"""What a library's exception says, as a part of one of our lines."""

import pytest

from declouder.errors import reason_of


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no such\n  file.", "no such file"),
        ("", "ValueError"),
        ("One. Two " + "x" * 300, "One"),
        ("a " * 99 + "end of it all", "a " * 99 + "..."),
        ("x" * 300, "x" * 200 + " ..."),
        ("No copy here (nothing found. To look " + "x" * 300 + ")", "No copy here"),
    ],
)
def test_a_reason_is_one_line_that_ends_with_a_sentence_or_a_word(text, told):
    assert reason_of(ValueError(text)) == told
