"""What does it cost to queue an invalidation?"""

import pytest


@pytest.mark.contests("queue-put")
def test_queue_put(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
