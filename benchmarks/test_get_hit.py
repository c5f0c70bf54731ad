"""What does a read that hits cost?"""

import pytest


@pytest.mark.operations("get-hit", "get-equal", "get-int", "get-tuple", "get-subscript")
def test_get_hit(time_case, case, contender):
    """Times the loop of `lapse bench` for each case and contender."""
    time_case(case, contender)
