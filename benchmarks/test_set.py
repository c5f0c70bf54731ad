"""What does a write cost, of a key that is there and of a new one?"""

import pytest


@pytest.mark.operations("set")
def test_set(time_case, case, contender):
    """Times the loop of `lapse bench` for each case and contender."""
    time_case(case, contender)
