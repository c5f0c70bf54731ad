"""What does it cost to remove what patterns match?"""

import pytest


@pytest.mark.contests("pattern", "pattern-first")
def test_pattern(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
