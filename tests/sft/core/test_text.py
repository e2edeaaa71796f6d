"""One is told as one."""

import pytest

from sft.core.text import counted


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(0, "row", "0 rows"), (1, "row", "1 row"), (1234, "row", "1,234 rows"), (2, "process", "2 processes")],
)
def test_a_number_of_things_is_told(count, noun, said):
    assert counted(count, noun) == said
