"""Sources of invalidations: where the news comes from that something has stopped being true.

message_queue   MessageQueueInvalidation: over any object that can receive and publish
memory          MemoryQueue: such an object, within one process
kombu           KombuQueue: such an object, over Redis or Valkey, RabbitMQ and others

database        DatabaseChangeInvalidation: over a source of changed rows, or any object to be asked
sqlite          SQLiteChanges: such a source, for SQLite files, whoever writes to them
templates       what follows from a changed row

Each is one file around a `Source` (lapse.invalidation.source). What a source needs from outside the
standard library it imports where it uses it, and names the extra that brings it.
"""
