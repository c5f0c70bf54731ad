"""The shop of the demo: product pages, categories, searches."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lapse.demo.origin import Origin, Reading, Writing
from lapse.demo.popularity import Popularity, zipf
from lapse.demo.world import World
from lapse.scenarios.base import Scenario
from lapse.scenarios.ecommerce import EcommerceCacheInvalidation
from lapse.sources.memory import MemoryQueue

__all__ = ["Ecommerce"]


#: What a change of each table is to the shop.
UPDATES = {
    "products": "category_change",
    "texts": "description_change",
    "prices": "price_change",
    "stocks": "inventory_change",
}


class Ecommerce(World):
    """A shop. What changes apart lies in tables of its own, so that each has its own versions."""

    name = "ecommerce"
    about = "a shop of 600 products in 12 categories"
    schema = """
        CREATE TABLE products (
            id INTEGER PRIMARY KEY, name TEXT, word TEXT, category INTEGER, version INTEGER
        );
        CREATE INDEX by_category ON products (category);
        CREATE INDEX by_word ON products (word);
        CREATE TABLE texts (id INTEGER PRIMARY KEY, description TEXT, version INTEGER);
        CREATE TABLE prices (id INTEGER PRIMARY KEY, cents INTEGER, version INTEGER);
        CREATE TABLE stocks (id INTEGER PRIMARY KEY, units INTEGER, version INTEGER);
        CREATE TABLE categories (id INTEGER PRIMARY KEY, name TEXT, size INTEGER, version INTEGER);
    """
    tables = ("products", "texts", "prices", "stocks", "categories")
    keys = MappingProxyType({"products": "product:{id}:details"})  # the rules do not see to these
    pause = 0.04
    products, categories, page = 600, 12, 10
    words = ("red", "green", "blue", "small", "large", "light", "heavy", "round", "flat", "warm")

    def __init__(self) -> None:
        products, categories = range(1, self.products + 1), range(1, self.categories + 1)
        self.popularity = Popularity(
            [
                (0.35, [f"product:{id}:details" for id in products]),
                (0.15, [f"product:{id}:price" for id in products]),
                (0.15, [f"product:{id}:inventory" for id in products]),
                (0.20, [f"category:{id}:1" for id in categories]),
                (0.10, [f"search:{word}" for word in self.words]),
                (0.05, [f"recommendations:{id}" for id in products]),
            ]
        )

    def fill(self, writing: Writing) -> None:
        for id in range(1, self.products + 1):
            word = self.words[id % len(self.words)]
            product = {"name": f"{word} thing {id}", "word": word, "category": self._home(id)}
            writing.insert("products", id=id, **product)
            writing.insert("texts", id=id, description=f"All about thing {id}.")
            writing.insert("prices", id=id, cents=100 + 7 * id)
            writing.insert("stocks", id=id, units=id % 50)
        for id in range(1, self.categories + 1):
            size = sum(self._home(each) == id for each in range(1, self.products + 1))
            writing.insert("categories", id=id, name=f"category {id}", size=size)

    def _home(self, product: int) -> int:
        return product % self.categories + 1

    def load(self, reading: Reading, key: str) -> Any:
        family, target, *aspect = key.split(":")
        if family == "product":
            return self._product(reading, int(target), aspect[0])
        if family == "category":
            return self._category(reading, int(target))
        if family == "search":
            return self._list(reading, "word = ? LIMIT ?", target, self.page)
        return self._list(reading, "id > ? LIMIT 3", int(target) % (self.products - 3))

    def _list(self, reading: Reading, where: str, *values: Any) -> Any:
        """Products with their prices, and whether they can be had."""
        products = reading.find("products", where, *values)
        ids = [product["id"] for product in products]
        prices, stocks = reading.among("prices", ids), reading.among("stocks", ids)
        return [
            (product["name"], prices[id]["cents"], stocks[id]["units"] > 0)
            for id, product in zip(ids, products, strict=True)
        ]

    def _product(self, reading: Reading, id: int, aspect: str) -> Any:
        if aspect == "price":
            return reading.get("prices", id)["cents"]
        if aspect == "inventory":
            return reading.get("stocks", id)["units"]
        product, text = reading.get("products", id), reading.get("texts", id)
        price = reading.get("prices", id)
        return product["name"], text["description"], price["cents"]

    def _category(self, reading: Reading, id: int) -> Any:
        """Who belongs to it is a change of the category's own row."""
        category = reading.get("categories", id)
        found = reading.find("products", "category = ? ORDER BY id LIMIT ?", id, self.page)
        return category["name"], category["size"], [product["name"] for product in found]

    def change(self, writing: Writing, rng: random.Random) -> None:
        id = zipf(rng, self.products)
        what = rng.choices(("price", "stock", "text", "category"), (40, 40, 15, 5))[0]
        if what == "price":
            writing.update("prices", writing.get("prices", id), cents=rng.randint(100, 9999))
        elif what == "stock":
            writing.update("stocks", writing.get("stocks", id), units=rng.randint(0, 50))
        elif what == "text":
            writing.update("texts", writing.get("texts", id), description=f"News {rng.random()}.")
        else:
            self._move(writing, id, rng.randint(1, self.categories))

    def _move(self, writing: Writing, id: int, to: int) -> None:
        product = writing.get("products", id)
        if product["category"] == to:
            return
        writing.update("products", product, category=to)
        for category, more in ((product["category"], -1), (to, 1)):
            row = writing.get("categories", category)
            writing.update("categories", row, size=row["size"] + more)

    def scenario(self, cache: Any, origin: Origin) -> Scenario:
        return EcommerceCacheInvalidation(cache, None, MemoryQueue(), start=False)

    def event(self, change: Mapping[str, Any]) -> dict[str, Any] | None:
        """A category's own row changes only with a product that moves, which is told of itself."""
        update = UPDATES.get(change["table"])
        if update is None:
            return None
        event = {"type": "product_update", "update_type": update, "product_id": change["key"]}
        if update == "category_change":
            event["old_category"] = change["old"]["category"]
            event["new_category"] = change["new"]["category"]
        return event
