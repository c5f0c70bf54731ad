"""Invalidation across processes and hosts: every cache hears of what has stopped being true.

broadcast         BroadcastInvalidation: one cache on a bus, which all caches of the bus listen to
memory            MemoryBroadcaster: a bus within one process
local             LocalBroadcaster: a bus of the processes of one host, without a broker
kombu             KombuBroadcaster: a bus over Valkey, Redis, RabbitMQ and what else kombu knows
consistent_hash   ConsistentHashInvalidation: each key goes to the one node that has it

A bus carries messages and knows nothing of caches. What it loses, its receivers find out: by the
sequence numbers of the senders, or because `receive()` says so (inbox.py).
"""
