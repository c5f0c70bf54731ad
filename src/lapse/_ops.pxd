# One operation on one key of an open table: hash, call, status to result or exception.
#
# Inline, and on the bare table: _core.pyx alone knows when a cache is open and what its clock says.
# A key is hashed before the table is entered, and what an operation replaced or removed is given up
# after it has returned, so `__hash__`, `__eq__` and `__del__` may use the same cache.

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t, uint64_t

from lapse._lapse cimport *


cdef inline int refuse(lapse_status status) except -1:
    """Raise what a failed status stands for."""
    if status == LAPSE_RAISED:
        return -1  # the comparison's own exception is set
    if status == LAPSE_NO_MEMORY:
        raise MemoryError("lapse: no memory for another segment")
    raise RuntimeError("the key's __eq__ changed the cache at every attempt")


cdef inline object taken(PyObject *owned):
    """The Python object behind an owned reference, which this takes over."""
    cdef object value = <object>owned
    Py_XDECREF(owned)
    return value


cdef inline void give_up_value(lapse_table *t, object key, PyObject *replaced) noexcept:
    if replaced != NULL:
        lapse_farewell_value(t, <PyObject *>key, replaced)


cdef inline void let_others_run(int64_t *since) noexcept:
    """Inside long work: once a millisecond, give up the GIL long enough for another thread to take it."""
    if clock_precise() - since[0] < 1_000_000:
        return
    with nogil:
        clock_pause()
    since[0] = clock_precise()


cdef inline object op_get(lapse_table *t, object key, int64_t now, object missing):
    """A counted read: the value or `missing`."""
    cdef PyObject *value = NULL
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_get(t, <PyObject *>key, h, now, &value)
    if status == LAPSE_OK:
        return taken(value)
    if status > LAPSE_EARLY:
        refuse(status)
    return missing


cdef inline object op_get_or_ticket(lapse_table *t, object key, int64_t now, object missing, bint *ticket):
    """The same; `ticket`: the caller alone should reload the entry, whose value this is."""
    cdef PyObject *value = NULL
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_get_or_ticket(t, <PyObject *>key, h, now, &value)
    ticket[0] = status == LAPSE_EARLY
    if status == LAPSE_OK or status == LAPSE_EARLY:
        return taken(value)
    if status > LAPSE_EARLY:
        refuse(status)
    return missing


cdef inline object op_stale(lapse_table *t, object key, int64_t now, object missing):
    """The value of an entry that is within its grace, or `missing`."""
    cdef PyObject *value = NULL
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_stale(t, <PyObject *>key, h, now, &value)
    if status == LAPSE_OK:
        return taken(value)
    if status > LAPSE_EARLY:
        refuse(status)
    return missing


cdef inline object op_peek(lapse_table *t, object key, int64_t now, object missing):
    """The live value or `missing`; nothing is touched, drawn or counted."""
    cdef lapse_item item
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_peek(t, <PyObject *>key, h, now, &item)
    if status == LAPSE_OK:
        Py_XDECREF(item.key)
        return taken(item.value)
    if status > LAPSE_EARLY:
        refuse(status)
    return missing


cdef inline bint op_has(lapse_table *t, object key, int64_t now) except -1:
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_has(t, <PyObject *>key, h, now)
    if status > LAPSE_EARLY:
        refuse(status)
    return status == LAPSE_OK


cdef inline bint op_deadline(lapse_table *t, object key, int64_t now, int64_t *deadline) except -1:
    """Is there a live entry, and until when?"""
    cdef lapse_item item
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_peek(t, <PyObject *>key, h, now, &item)
    if status > LAPSE_EARLY:
        refuse(status)
    if status != LAPSE_OK:
        return False
    deadline[0] = item.deadline
    lapse_release(&item, 1)
    return True


cdef inline int op_put(lapse_table *t, object key, uint64_t h, object value, int64_t life,
                       int64_t now) except -1:
    cdef PyObject *replaced = NULL
    cdef lapse_status status = lapse_put(t, <PyObject *>key, h, <PyObject *>value, life, now, &replaced)
    if status != LAPSE_OK:
        refuse(status)
    give_up_value(t, key, replaced)
    return 0


cdef inline int op_put_tagged(lapse_table *t, object key, uint64_t h, object value, int64_t life,
                              const lapse_tags *tags, int64_t now) except -1:
    cdef PyObject *replaced = NULL
    cdef lapse_status status = lapse_put_tagged(t, <PyObject *>key, h, <PyObject *>value, life, tags, now,
                                                &replaced)
    if status != LAPSE_OK:
        refuse(status)
    give_up_value(t, key, replaced)
    return 0


cdef inline object op_put_new(lapse_table *t, object key, object value, int64_t life, int64_t now,
                              object missing):
    """Store if absent: `missing` if stored, else the live value that is there."""
    cdef PyObject *present = NULL
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_put_new(t, <PyObject *>key, h, <PyObject *>value, life, now, &present)
    if status > LAPSE_ABSENT:
        refuse(status)
    return taken(present) if status == LAPSE_OK else missing


cdef inline bint op_exchange(lapse_table *t, object key, object old, object new, int64_t now) except -1:
    """Replace a live value that is still `old`, keeping its deadline."""
    cdef PyObject *replaced = NULL
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_exchange(t, <PyObject *>key, h, <PyObject *>old, <PyObject *>new, now,
                                              &replaced)
    if status > LAPSE_EARLY:
        refuse(status)
    give_up_value(t, key, replaced)
    return status == LAPSE_OK


cdef inline bint op_touch(lapse_table *t, object key, uint64_t h, int64_t life, int64_t now) except -1:
    cdef lapse_status status = lapse_touch(t, <PyObject *>key, h, life, now)
    if status > LAPSE_EARLY:
        refuse(status)
    return status == LAPSE_OK


cdef inline object op_pop(lapse_table *t, object key, uint64_t h, int64_t now, object missing):
    """Remove a key: its value, or `missing` if it was not live."""
    cdef lapse_item item
    cdef lapse_status status = lapse_delete(t, <PyObject *>key, h, now, &item)
    if status == LAPSE_ABSENT:
        return missing
    if status > LAPSE_EARLY:
        refuse(status)
    value = <object>item.value if status == LAPSE_OK else missing
    lapse_farewell(t, &item, 1, LAPSE_DELETED if status == LAPSE_OK else LAPSE_BY_DEADLINE)
    return value


cdef inline bint op_delete(lapse_table *t, object key, int64_t now) except -1:
    """Remove a key; was it live?"""
    cdef lapse_item item
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_delete(t, <PyObject *>key, h, now, &item)
    if status == LAPSE_ABSENT:
        return False
    if status > LAPSE_EARLY:
        refuse(status)
    lapse_farewell(t, &item, 1, LAPSE_DELETED if status == LAPSE_OK else LAPSE_BY_DEADLINE)
    return status == LAPSE_OK


cdef inline bint op_drop(lapse_table *t, object key, object expected, int64_t now) except -1:
    """Remove a key if its value is still `expected`, and outdate no lease; was it live?"""
    cdef lapse_item item
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = lapse_drop(t, <PyObject *>key, h, <PyObject *>expected, now, &item)
    if status == LAPSE_ABSENT:
        return False
    if status > LAPSE_EARLY:
        refuse(status)
    lapse_farewell(t, &item, 1, LAPSE_DELETED if status == LAPSE_OK else LAPSE_BY_DEADLINE)
    return status == LAPSE_OK


cdef inline object op_fill(lapse_table *t, lapse_lease *lease, object key, object value, int64_t life,
                           const lapse_tags *tags, bint change, int64_t now):
    """Store what was loaded under a lease; False if it is outdated."""
    cdef PyObject *replaced = NULL
    cdef lapse_status status = lapse_fill(t, lease, <PyObject *>value, life, tags, change, now, &replaced)
    if status == LAPSE_OUTDATED:
        return False
    if status != LAPSE_OK:
        refuse(status)
    give_up_value(t, key, replaced)
    return True


cdef inline int op_restore(lapse_table *t, object key, object value, lapse_item *dates,
                           const lapse_tags *tags, int64_t now) except -1:
    """Store a copied entry with its own dates."""
    cdef PyObject *replaced = NULL
    cdef uint64_t h = <uint64_t>fast_hash(key)
    dates.key, dates.value = <PyObject *>key, <PyObject *>value
    cdef lapse_status status = lapse_put_item(t, dates, h, tags, now, &replaced)
    if status != LAPSE_OK:
        refuse(status)
    give_up_value(t, key, replaced)
    return 0


cdef inline int hash_block(lapse_table *t, list keys, Py_ssize_t start, uint64_t *hashes) except -1:
    """Hash a block of keys before any of them is used, and fetch ahead what they will need."""
    cdef Py_ssize_t i, n = min(<Py_ssize_t>BLOCK, len(keys) - start)
    for i in range(n):
        hashes[i] = <uint64_t>fast_hash(keys[start + i])
    lapse_prefetch(t, n, hashes)
    return 0
