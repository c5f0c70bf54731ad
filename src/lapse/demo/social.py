"""The social network of the demo: posts, and timelines of those whom one follows."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from lapse.demo.origin import Origin, Reading, Writing, marks
from lapse.demo.popularity import Popularity, zipf
from lapse.demo.world import World
from lapse.scenarios.base import Scenario
from lapse.scenarios.social import SocialMediaCacheInvalidation
from lapse.sources.memory import MemoryQueue

__all__ = ["Social"]


class Social(World):
    """People who follow each other, and what they post."""

    name = "social"
    about = "200 people who post and follow each other"
    schema = """
        CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, posts INTEGER, version INTEGER);
        CREATE TABLE circles (
            id INTEGER PRIMARY KEY, size INTEGER, latest INTEGER, version INTEGER
        );
        CREATE TABLE follows (
            follower INTEGER, followed INTEGER, still INTEGER, PRIMARY KEY (follower, followed)
        );
        CREATE INDEX by_followed ON follows (followed);
        CREATE TABLE posts (
            id INTEGER PRIMARY KEY, author INTEGER, text TEXT, deleted INTEGER, version INTEGER
        );
        CREATE INDEX by_author ON posts (author, id);
    """
    tables = ("people", "circles", "posts")
    pause = 0.05
    people, posts, follows, page = 200, 1000, 8, 10

    def __init__(self) -> None:
        self.popularity = Popularity(
            [
                (0.6, [f"post:{id}" for id in range(self.posts, 0, -1)]),
                (0.4, [f"timeline:{id}:1" for id in range(1, self.people + 1)]),
            ]
        )

    def fill(self, writing: Writing) -> None:
        rng = random.Random(self.name)
        each = self.posts // self.people
        for id in range(1, self.people + 1):
            writing.insert("people", id=id, name=f"person {id}", posts=each)
            writing.insert("circles", id=id, size=self.follows, latest=None)
            for other in rng.sample(range(1, self.people + 1), self.follows):
                writing.run("INSERT INTO follows VALUES (?, ?, 1)", id, other)
        for id in range(1, self.posts + 1):
            author = id % self.people + 1
            writing.insert("posts", id=id, author=author, text=f"Post {id}.", deleted=0)

    def load(self, reading: Reading, key: str) -> Any:
        family, target, *_ = key.split(":")
        if family == "post":
            post = reading.get("posts", int(target))
            return None if post["deleted"] else post["text"]
        return self._timeline(reading, int(target))

    def _timeline(self, reading: Reading, id: int) -> Any:
        """Whom one follows is a change of one's circle, a new post one of its author's row."""
        reading.get("circles", id)
        followed = "SELECT followed FROM follows WHERE follower = ? AND still"
        authors = reading.find("people", f"id IN ({followed}) OR id = ?", id, id)
        names = {author["id"]: author["name"] for author in authors}
        newest = f"author IN ({marks(names)}) AND NOT deleted ORDER BY id DESC LIMIT {self.page}"
        return [(names[p["author"]], p["text"]) for p in reading.find("posts", newest, *names)]

    def change(self, writing: Writing, rng: random.Random) -> None:
        what = rng.choices(("edit", "post", "delete", "follow"), (40, 35, 5, 20))[0]
        person = zipf(rng, self.people)
        if what == "post":
            writing.insert("posts", author=person, text=f"News {rng.random()}.", deleted=0)
            self._count(writing, person, 1)
        elif what == "follow":
            self._follow(writing, person, rng.randint(1, self.people))
        else:
            (post,) = writing.query(
                "SELECT * FROM posts WHERE NOT deleted ORDER BY id DESC LIMIT 1 OFFSET ?",
                zipf(rng, self.posts) - 1,
            )
            if what == "edit":
                writing.update("posts", post, text=f"Edited {rng.random()}.")
            else:
                writing.update("posts", post, deleted=1)
                self._count(writing, post["author"], -1)

    def _count(self, writing: Writing, person: int, more: int) -> None:
        row = writing.get("people", person)
        writing.update("people", row, posts=row["posts"] + more)

    def _follow(self, writing: Writing, person: int, other: int) -> None:
        """Follow somebody, or no longer."""
        pair = "follower = ? AND followed = ?"
        found = writing.query(f"SELECT still FROM follows WHERE {pair}", person, other)
        follows = not (found and found[0]["still"])
        if found:
            writing.run(f"UPDATE follows SET still = ? WHERE {pair}", follows, person, other)
        else:
            writing.run("INSERT INTO follows VALUES (?, ?, 1)", person, other)
        circle = writing.get("circles", person)
        size = circle["size"] + (1 if follows else -1)
        writing.update("circles", circle, size=size, latest=other)

    def scenario(self, cache: Any, origin: Origin) -> Scenario:
        return SocialMediaCacheInvalidation(cache, Followers(origin), MemoryQueue(), start=False)

    def event(self, change: Mapping[str, Any]) -> dict[str, Any] | None:
        """A person's own row changes only with a post, which is told of itself."""
        old, new = change["old"], change["new"]
        if change["table"] == "posts":
            update = "new_post" if old is None else "post_update"
            if new["deleted"]:
                update = "post_delete"
            return _event(update, user_id=new["author"], post_id=new["id"])
        if change["table"] == "circles":
            update = "user_follow" if new["size"] > old["size"] else "user_unfollow"
            return _event(update, follower_id=new["id"], following_id=new["latest"])
        return None


class Followers:
    """The followers of a person, as the scenario asks for them.

    Those of former times are among them: when the scenario is told of a post, somebody may have
    stopped following its author a moment ago, and still have the timeline from before.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def get_followers(self, user_id: int) -> list[int]:
        """Their numbers."""
        found = self._origin.query("SELECT follower FROM follows WHERE followed = ?", user_id)
        return [each["follower"] for each in found]


def _event(update: str, **fields: Any) -> dict[str, Any]:
    return {"type": "feed_update", "update_type": update, **fields}
