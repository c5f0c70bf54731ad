"""Invalidation: one shape for what has stopped being true, one queue that applies it in batches.

message     Invalidation: what is to go, and where that was noticed
queue       OptimizedInvalidation: producers return at once, a thread applies
wire        batches of invalidations as bytes
metrics     what they cost on the network; counting has the lock under which figures are counted
source      what every source of invalidations looks like; receiver applies what it brings
channel     a source over any transport of messages; transport says what that is
facade      what the classes that receive invalidations have in common
"""

from lapse.invalidation.message import Invalidation
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.queue import Applied, OptimizedInvalidation
from lapse.invalidation.stats import QueueStats

__all__ = ["Applied", "Invalidation", "OptimizedInvalidation", "QueueStats", "WireMeter"]
