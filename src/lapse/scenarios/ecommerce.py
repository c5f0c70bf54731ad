"""EcommerceCacheInvalidation: a catalogue whose prices, stock and texts change.

{"type": "product_update", "product_id": 7, "update_type": "price_change"}

product:{id}:price, :details, :inventory, :availability, :description    of one product
category:{id}:*                                                          lists of a category
search:*, recommendations:*                                              whatever shows products
"""

from __future__ import annotations

from typing import Any

from lapse.invalidation.rules import InvalidationRules, Rule
from lapse.scenarios.base import Scenario

__all__ = ["ECOMMERCE_RULES", "EcommerceCacheInvalidation"]

LISTS = ("search:*", "recommendations:*")  # any change of any product may show there

#: What each event makes outdated.
ECOMMERCE_RULES = InvalidationRules(
    Rule(
        "product_update", {"update_type": "price_change"},
        keys=["product:{product_id}:price", "product:{product_id}:details"],
    ),
    Rule(
        "product_update", {"update_type": "inventory_change"},
        keys=["product:{product_id}:inventory", "product:{product_id}:availability"],
    ),
    Rule(
        "product_update", {"update_type": "description_change"},
        keys=["product:{product_id}:details", "product:{product_id}:description"],
    ),
    Rule(
        "product_update", {"update_type": "category_change"},
        patterns=["category:{old_category?}:*", "category:{new_category?}:*"],
    ),
    Rule("product_update", patterns=LISTS),
    Rule("invalidate_product", patterns=["product:{product_id}:*", "category:*", *LISTS]),
    Rule("invalidate_category", patterns=["category:{category_id}:*", *LISTS]),
)  # fmt: skip


class EcommerceCacheInvalidation(Scenario):
    """Keeps a cache of products true.

    Args:
        cache, message_queue: as `Scenario` takes them.
        database: kept for subclasses and rules of your own; these rules do not ask it.
        rules: instead of ECOMMERCE_RULES.
        options: as `Scenario` takes them: start, on_resync, soft_ttl, on_alert, name and so on.
    """

    default_name = "ecommerce"

    def __init__(
        self,
        cache: Any,
        database: Any,
        message_queue: Any,
        *,
        rules: InvalidationRules = ECOMMERCE_RULES,
        **options: Any,
    ) -> None:
        self.database = database
        super().__init__(cache, message_queue, rules, **options)

    def invalidate_product(self, product_id: Any) -> int:
        """Everything about a product goes, here alone; how many entries went."""
        return self.apply_event({"type": "invalidate_product", "product_id": product_id})

    def invalidate_category(self, category_id: Any) -> int:
        """Everything about a category goes, here alone; how many entries went."""
        return self.apply_event({"type": "invalidate_category", "category_id": category_id})
