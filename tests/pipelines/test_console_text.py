"""What is printed is text, whatever the names in a file or on the command line are."""

from __future__ import annotations

from pipelines.console import printable


def test_half_characters_and_control_codes_are_spelt_out() -> None:
    shown = printable("a\ud800b\x1b[2J\u202e\tc")
    assert shown == "a\\xd800b\\x1b[2J\\x202e\tc"
    assert shown.encode().decode() == shown
