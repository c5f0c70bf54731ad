"""SocialMediaCacheInvalidation: timelines that show posts of the people one follows.

    {"type": "feed_update", "update_type": "new_post", "user_id": 7, "post_id": 9}

    post:{id}              one post
    timeline:{user}:*      the pages of one user's timeline

A new post reaches the timelines of all followers. They are one batch, and when it has begun nobody
reads an old page any more, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lapse.invalidation.rules import Event, InvalidationRules, Rule, field_of
from lapse.scenarios.base import Scenario

__all__ = ["SocialMediaCacheInvalidation", "social_rules"]


def social_rules(get_followers: Callable[[Any], Iterable[Any]]) -> InvalidationRules:
    """What each event makes outdated; `get_followers(user_id)` answers the followers' ids."""

    def followers(event: Event) -> Iterable[Any]:
        return get_followers(field_of(event, "user_id"))

    return InvalidationRules(
        Rule(
            "feed_update", {"update_type": "new_post"},
            patterns=["timeline:{user_id}:*", "timeline:{follower_id}:*"],
            each=("follower_id", followers),
        ),
        Rule(
            "feed_update", {"update_type": "post_update"},
            keys=["post:{post_id}"], patterns=["timeline:*"],
        ),
        Rule(
            "feed_update", {"update_type": "post_delete"},
            keys=["post:{post_id}"], patterns=["timeline:*"],
        ),
        Rule(
            "feed_update", {"update_type": "user_follow"},
            patterns=["timeline:{follower_id}:*"],
        ),
        Rule(
            "feed_update", {"update_type": "user_unfollow"},
            patterns=["timeline:{follower_id}:*"],
        ),
        Rule("invalidate_user_timeline", patterns=["timeline:{user_id}:*"]),
        Rule("invalidate_post", keys=["post:{post_id}"], patterns=["timeline:*"]),
    )  # fmt: skip


class SocialMediaCacheInvalidation(Scenario):
    """Keeps a cache of posts and timelines true.

    Args:
        cache, message_queue: as `Scenario` takes them.
        database: anything with `get_followers(user_id)`, an iterable of ids. It is asked in the
            receiver's thread; what it raises is a resync.
        rules: instead of `social_rules(database.get_followers)`.
        options: as `Scenario` takes them: start, on_resync, soft_ttl, on_alert, name and so on.
    """

    default_name = "social"

    def __init__(
        self,
        cache: Any,
        database: Any,
        message_queue: Any,
        *,
        rules: InvalidationRules | None = None,
        **options: Any,
    ) -> None:
        self.database = database
        if rules is None:
            rules = social_rules(lambda user_id: database.get_followers(user_id))
        super().__init__(cache, message_queue, rules, **options)

    def invalidate_user_timeline(self, user_id: Any) -> int:
        """A user's timeline goes, here alone; how many entries went."""
        return self.apply_event({"type": "invalidate_user_timeline", "user_id": user_id})

    def invalidate_post(self, post_id: Any) -> int:
        """A post and every timeline go, here alone; how many entries went."""
        return self.apply_event({"type": "invalidate_post", "post_id": post_id})
