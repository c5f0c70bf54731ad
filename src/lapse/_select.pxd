# Selecting many entries of an open table: by pattern, by tag, by a list of keys. Inline, and on the bare
# table, like _ops.pxd; long work goes in the bounded steps of csrc/pass.c, csrc/storm.c and csrc/erase.c.

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_FromKindAndData, PyUnicode_4BYTE_KIND
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lapse._lapse cimport *
from lapse._ops cimport *


# --- Patterns ---

cdef inline int check_pattern(object pattern, lapse_text *text) except -1:
    """Its text. TypeError or ValueError says what is wrong with it."""
    if not object_text(<PyObject *>pattern, text):
        raise TypeError(f"a pattern must be a str or bytes, not {type(pattern).__name__}")
    if len(pattern) > PATTERN_MAX:
        raise ValueError(f"a pattern must not be longer than {PATTERN_MAX}, this has {len(pattern)}")
    return 0


cdef inline lapse_pattern *compiled(object pattern) except NULL:
    """The pattern, to be freed by the caller. TypeError or ValueError says what is wrong with it."""
    cdef lapse_text text
    cdef lapse_pattern *p = NULL
    check_pattern(pattern, &text)
    if lapse_pattern_new(&lapse_system_memory, &text, &p) != LAPSE_OK:
        raise MemoryError("lapse: no memory for a pattern")
    return p


cdef inline object literal_key(const lapse_pattern *p, object pattern):
    """The one key that a pattern without wildcards matches."""
    cdef uint32_t units[PATTERN_MAX]
    cdef size_t i, n = lapse_pattern_literal(p, units)
    if isinstance(pattern, bytes):
        return bytes([units[i] for i in range(n)])
    return PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, units, n)


cdef inline int free_patterns(lapse_pattern **patterns, Py_ssize_t n) except -1:
    cdef Py_ssize_t i
    for i in range(n):
        lapse_pattern_free(&lapse_system_memory, patterns[i])
    PyMem_Free(patterns)
    return 0


cdef inline int run_pass(lapse_pass *p) except -1:
    """Take a removing pass to its end."""
    cdef lapse_item items[STEP]
    cdef size_t n
    cdef int64_t since = clock_precise()
    cdef lapse_status status = LAPSE_MORE
    while status == LAPSE_MORE:
        status = lapse_pass_step(p, items, &n)
        let_others_run(&since)
    if status != LAPSE_OK:
        refuse(status)
    return 0


cdef inline int erase_matches(lapse_table *t, lapse_pattern **patterns, Py_ssize_t n, int64_t now,
                              list counts, list where) except -1:
    """Remove what any of the patterns matches; add the i-th's count to counts[where[i]]."""
    cdef lapse_pass *p = NULL
    cdef Py_ssize_t i
    if n == 0:
        return 0
    cdef lapse_status status = lapse_pass_new(t, patterns, n, NULL, 0, now, False, &p)
    if status != LAPSE_OK:
        refuse(status)
    try:
        run_pass(p)
        for i in range(n):
            counts[where[i]] += lapse_pass_counts(p)[i]
    finally:
        lapse_pass_end(p)
    return 0


cdef inline int erase_globs(lapse_table *t, list patterns, list numbers, int64_t now, list counts) except -1:
    """Remove what the patterns of these numbers match, all in one pass; add to their counts."""
    cdef Py_ssize_t n = 0
    cdef list where = [], literals = []
    cdef lapse_pattern **several = <lapse_pattern **>PyMem_Calloc(len(numbers) + 1, sizeof(lapse_pattern *))
    if several == NULL:
        raise MemoryError("lapse: no memory for the patterns")
    try:
        for i in numbers:
            several[n] = compiled(patterns[i])
            n += 1
            if lapse_pattern_is_literal(several[n - 1]):
                literals.append((i, literal_key(several[n - 1], patterns[i])))
                n -= 1
                lapse_pattern_free(&lapse_system_memory, several[n])
            else:
                where.append(i)
        erase_matches(t, several, n, now, counts, where)
        for i, key in literals:
            counts[i] = int(op_delete(t, key, now))
    finally:
        free_patterns(several, n)
    return 0


cdef inline list erase_patterns(lapse_table *t, list patterns, int64_t now):
    """Remove what the patterns match; the live entries that went, for each of them: one match counts.

    Every pattern is checked before anything is done.
    """
    cdef list counts = [0] * len(patterns), others
    cdef lapse_prefixes *x = NULL
    try:
        others = put_prefixes_aside(t, patterns, &x)
        if x != NULL:
            erase_prefixes(t, x, now, counts)
        erase_globs(t, patterns, others, now, counts)
    finally:
        if x != NULL:
            lapse_prefixes_free(&lapse_system_memory, x)
    return counts


# --- Very many prefixes ---

cdef enum:
    STORM_LEAST = 16  # patterns: fewer are not worth the set


cdef inline list put_prefixes_aside(lapse_table *t, list patterns, lapse_prefixes **out):
    """Put those that are prefixes into a set, if they are worth a storm; the numbers of all others."""
    cdef lapse_text text
    cdef lapse_prefixes *x = NULL
    cdef Py_ssize_t i, n = len(patterns)
    cdef list others = []
    if n < STORM_LEAST:
        return list(range(n))
    if lapse_prefixes_new(&lapse_system_memory, n, &x) != LAPSE_OK:
        raise MemoryError("lapse: no memory for the patterns")
    try:
        for i in range(n):
            check_pattern(patterns[i], &text)
            if not lapse_prefixes_add(x, &text, <uint32_t>i):
                others.append(i)
        if lapse_is_storm(t, x, n - len(others)):
            out[0] = x
        else:
            others = list(range(n))
    finally:
        if out[0] == NULL:
            lapse_prefixes_free(&lapse_system_memory, x)
    return others


cdef inline int erase_prefixes(lapse_table *t, const lapse_prefixes *x, int64_t now, list counts) except -1:
    """Remove what the prefixes cover; nobody sees any of it from the first step on."""
    cdef lapse_storm *s = NULL
    cdef Py_ssize_t i
    cdef int64_t since = clock_precise()
    if lapse_storm_new(t, x, len(counts), now, &s) != LAPSE_OK:
        raise MemoryError("lapse: no memory for the patterns")
    try:
        while lapse_storm_step(s) == LAPSE_MORE:
            let_others_run(&since)
        for i in range(len(counts)):
            counts[i] = lapse_storm_counts(s)[i]
    finally:
        lapse_storm_end(s)
    return 0


cdef inline list keys_matching(lapse_table *t, object pattern, int64_t now):
    """The live keys that a pattern matches."""
    cdef lapse_pattern *one = compiled(pattern)
    cdef lapse_pass *p = NULL
    try:
        if lapse_pattern_is_literal(one):
            key = literal_key(one, pattern)
            return [key] if op_has(t, key, now) else []
        if lapse_pass_new(t, &one, 1, NULL, 0, now, True, &p) != LAPSE_OK:
            refuse(LAPSE_NO_MEMORY)
        return listed(p)
    finally:
        if p != NULL:
            lapse_pass_end(p)
        lapse_pattern_free(&lapse_system_memory, one)


cdef inline list listed(lapse_pass *p):
    """Take a listing pass to its end."""
    cdef lapse_item items[STEP]
    cdef PyObject *found[STEP]
    cdef size_t i, n = 0
    cdef int64_t since = clock_precise()
    cdef lapse_status status = LAPSE_MORE
    cdef list keys = []
    while status == LAPSE_MORE:
        status = lapse_pass_step(p, items, &n)
        for i in range(n):
            found[i] = items[i].key
        for key in fast_taken_list(found, n):
            keys.append(key)
        let_others_run(&since)
    if status != LAPSE_OK:
        refuse(status)
    return keys


# --- Leases alone ---

cdef inline int outdate(lapse_table *t, lapse_pattern **pattern, object tag) except -1:
    """Outdate the leases that one pattern or, if that is NULL, a tag covers."""
    cdef lapse_pass *p = NULL
    cdef PyObject *name = NULL if tag is None else <PyObject *>tag
    cdef uint64_t h = 0 if tag is None else <uint64_t>fast_hash(tag)
    cdef int64_t since = clock_precise()
    cdef lapse_status status = lapse_pass_new(t, pattern, pattern != NULL, name, h, LAPSE_NATIVE,
                                              False, &p)
    if status != LAPSE_OK:
        refuse(status)
    while lapse_pass_outdate(p):
        let_others_run(&since)
    lapse_pass_end(p)
    return 0


# --- Tags ---

cdef inline Py_ssize_t erase_tag(lapse_table *t, str tag, int64_t now) except -1:
    """Remove what bears the tag; how many entries were live."""
    cdef lapse_pass *p = NULL
    cdef lapse_status status = lapse_pass_new(t, NULL, 0, <PyObject *>tag, <uint64_t>fast_hash(tag), now,
                                              False, &p)
    if status != LAPSE_OK:
        refuse(status)
    try:
        run_pass(p)
        return lapse_pass_counts(p)[0]
    finally:
        lapse_pass_end(p)


cdef inline list keys_bearing(lapse_table *t, str tag, int64_t now):
    """The keys whose entries bear the tag, and are live at `now`."""
    cdef lapse_pass *p = NULL
    cdef lapse_status status = lapse_pass_new(t, NULL, 0, <PyObject *>tag, <uint64_t>fast_hash(tag), now,
                                              True, &p)
    if status != LAPSE_OK:
        refuse(status)
    try:
        return listed(p)
    finally:
        lapse_pass_end(p)


cdef inline object tags_of(lapse_table *t, object key, int64_t now):
    """The tags of a live entry, as a frozenset; empty if there is no such entry."""
    cdef PyObject *few[16]
    cdef PyObject **names = few
    cdef size_t n = 0, room = 16
    cdef uint64_t h = <uint64_t>fast_hash(key)
    cdef lapse_status status = LAPSE_NO_ROOM
    try:
        while status == LAPSE_NO_ROOM:
            status = lapse_tags_of(t, <PyObject *>key, h, now, names, room, &n)
            if status > LAPSE_EARLY:
                refuse(status)
            if n <= room:
                return frozenset(fast_taken_list(names, n))
            if names != few:
                PyMem_Free(names)
            room, status = n, LAPSE_NO_ROOM
            names = <PyObject **>PyMem_Malloc(room * sizeof(PyObject *))
            if names == NULL:
                refuse(LAPSE_NO_MEMORY)
    finally:
        if names != few:
            PyMem_Free(names)


# --- Keys ---

cdef inline tuple erase_keys(lapse_table *t, list keys, int64_t now):
    """Remove keys, grouped by segment: (a byte for each, 1 if it was live; what was raised, by index).

    MemoryError is raised at once: some keys may be there still.
    """
    cdef Py_ssize_t i, n = len(keys)
    cdef bytearray erased = bytearray(n)
    cdef dict errors = {}
    cdef PyObject **objects = <PyObject **>PyMem_Malloc((n + 1) * (sizeof(PyObject *) + sizeof(uint64_t) + 8))
    if objects == NULL:
        raise MemoryError("lapse: no memory for a batch of keys")
    cdef uint64_t *hashes = <uint64_t *>(objects + n)
    cdef uint32_t *order = <uint32_t *>(hashes + n)
    try:
        for i in range(n):
            objects[i] = <PyObject *>keys[i]
            try:
                hashes[i] = <uint64_t>fast_hash(keys[i])
            except MemoryError:
                raise
            except Exception as error:
                errors[i] = error
        if errors:
            return erase_hashable(t, keys, errors, now)
        lapse_sort_hashes(n, hashes, order, order + n)
        erase_sorted(t, n, objects, hashes, order, now, erased, errors)
    finally:
        PyMem_Free(objects)
    return erased, errors


cdef inline tuple erase_hashable(lapse_table *t, list keys, dict errors, int64_t now):
    """Remove those keys that have no error yet."""
    cdef list where = [i for i in range(len(keys)) if i not in errors]
    some, more = erase_keys(t, [keys[i] for i in where], now)
    cdef bytearray erased = bytearray(len(keys))
    for i, one in zip(where, some):
        erased[i] = one
    errors.update({where[i]: error for i, error in more.items()})
    return erased, errors


cdef inline int erase_sorted(lapse_table *t, size_t n, PyObject **objects, const uint64_t *hashes,
                             const uint32_t *order, int64_t now, bytearray erased, dict errors) except -1:
    cdef size_t done = 0
    cdef uint8_t *bytes_of = <uint8_t *><char *>erased
    cdef int64_t since = clock_precise()
    cdef lapse_status status = LAPSE_MORE
    while status != LAPSE_OK:
        status = lapse_erase_keys(t, n, objects, hashes, &done, now, order, bytes_of)
        let_others_run(&since)
        if status == LAPSE_OK or status == LAPSE_MORE:
            continue
        try:
            refuse(status)
        except MemoryError:
            raise
        except Exception as error:
            errors[order[done]] = error
            done += 1
    return 0
