"""What does a key cost when many are read in one call?"""

import pytest


@pytest.mark.operations("gather")
def test_gather(time_case, case, contender):
    """Times the loop of `lapse bench` for each case and contender."""
    time_case(case, contender)
