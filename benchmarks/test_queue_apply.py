"""What does it cost to apply what is queued?"""

import pytest


@pytest.mark.contests("queue-apply", "queue-backlog", "queue-stream")
def test_queue_apply(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
