"""What does a full cache cost: a new key, and a replay that misses?"""

import pytest


@pytest.mark.contests("evict-1k", "evict-1m", "zipf-1k", "zipf-10k", "zipf-100k")
def test_bounded(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
