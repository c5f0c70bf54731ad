"""What does it cost to remove the entries of a tag?"""

import pytest


@pytest.mark.contests("tag")
def test_delete_tag(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
