"""What does it cost to delete a key?"""

import pytest


@pytest.mark.operations("delete")
def test_delete(time_case, case, contender):
    """Times the loop of `lapse bench` for each case and contender."""
    time_case(case, contender)
