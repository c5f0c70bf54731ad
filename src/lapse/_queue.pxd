# The one extern block of lapse._queue: the ring (csrc/queue.h), its histogram, and the native clock.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef extern from "queue.h" nogil:
    ctypedef struct lapse_memory:
        pass
    ctypedef struct lapse_queue:
        pass
    ctypedef enum queue_kind:
        QUEUE_KEY
        QUEUE_PATTERN
        QUEUE_TABLE
        QUEUE_TAG
        QUEUE_ALL
    ctypedef struct queue_item:
        PyObject *target
        int64_t enqueued_ns
        queue_kind kind
    ctypedef enum queue_status:
        QUEUE_PUSHED
        QUEUE_WAKE
        QUEUE_LATE
        QUEUE_FULL
        QUEUE_CLOSED
    const lapse_memory lapse_system_memory

    lapse_queue *queue_new(const lapse_memory *memory, size_t capacity)
    void queue_free(lapse_queue *q)
    queue_status queue_push(lapse_queue *q, queue_kind kind, PyObject *target, int64_t enqueued_ns)
    size_t queue_take(lapse_queue *q, queue_item *out, size_t limit)
    bint queue_oldest(lapse_queue *q, int64_t *enqueued_ns)
    bint queue_arm(lapse_queue *q, uint64_t depth)
    void queue_close(lapse_queue *q)
    bint queue_is_closed(const lapse_queue *q)
    uint64_t queue_pushed(const lapse_queue *q)
    uint64_t queue_taken(const lapse_queue *q)
    size_t queue_capacity(const lapse_queue *q)
    size_t queue_bytes(const lapse_queue *q)
    void queue_after_fork(lapse_queue *q)

cdef extern from "histogram.h" nogil:
    ctypedef struct lapse_histogram:
        int64_t largest
    void histogram_record(lapse_histogram *h, int64_t value, uint64_t times)
    int64_t histogram_percentile(const lapse_histogram *h, double share)

cdef extern from "pattern.h":
    const size_t LAPSE_PATTERN_MAX

cdef extern from "memory.h":
    uint64_t memory_refuse(uint64_t first, uint64_t end)

cdef extern from "clock.h" nogil:
    int64_t clock_coarse()

cdef extern from "atomics.h" nogil:
    Py_ssize_t ACQUIRE(Py_ssize_t *p)
    void PUBLISH(Py_ssize_t *p, Py_ssize_t v)

cdef extern from "_producer.h":
    int producer_install(type queue_type) except -1
    int describe_methods(type cls, type queue_type) except -1
