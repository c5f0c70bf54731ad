"""What does a tag add to a write?"""

import pytest


@pytest.mark.contests("tag-set-1k", "tag-set-1m", "tag-new-1k", "tag-new-1m")
def test_set_tagged(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
