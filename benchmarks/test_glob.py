"""What does it cost to find what a pattern without a head matches, or one full of stars?"""

import pytest


@pytest.mark.contests("pattern-glob", "pattern-rare", "pattern-stars")
def test_glob(time_trial, contest, entrant):
    """Times the calls of `lapse bench` for each entrant."""
    time_trial(contest, entrant)
