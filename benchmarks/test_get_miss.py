"""What does a read that misses cost?"""

import pytest


@pytest.mark.operations("get-miss")
def test_get_miss(time_case, case, contender):
    """Times the loop of `lapse bench` for each case and contender."""
    time_case(case, contender)
