/* Fast entries in front of the Cython methods, and the type slots that Cython cannot spell.
 *
 * Each fast entry takes the common shape of a call (positional arguments, native clock, an open
 * cache), answers it from the table, and hands every other shape to the Cython method behind it, so
 * that _core.pyx alone says what a method does. fast_install() puts them in place once, when the
 * module starts, before any subclass or instance exists.
 *
 *   get, __getitem__, set, __setitem__     read.h and lapse_put() without argument parsing; set(k, v, tags=t)
 *   Memo.__call__                          key and read of a cached function
 *   tp_traverse, tp_clear                  the table's own entries, by its gc bitmaps
 */
#ifndef LAPSE_FAST_H
#define LAPSE_FAST_H

#include "_labels.h"
#include "_methods.h"
#include "read.h"

/* How every Cache begins; _core.pyx declares the same four fields first. */
typedef struct {
    PyObject_HEAD
    lapse_table *table;  /* NULL once closed */
    lapse_table *direct; /* the same, but NULL also under a caller's clock */
    lapse_table *owned;  /* until the object dies */
    lapse_table *quick;  /* the same as direct if read_quickly() suits it, else NULL */
} cache_head;

/* The Cython methods and slots behind the fast entries: written once, in fast_install(). */
static struct {
    FastMethod get, set, get_or_load, load;
    binaryfunc subscript;
    objobjargproc store;
    traverseproc traverse;
    inquiry clear;
    PyObject *tags, *old; /* the interned names of these keywords */
} behind;

/* The open table of a cache, or NULL; another thread may close it at any time. */
static inline lapse_table *fast_table(PyObject *self) { return RELAXED(&((cache_head *)self)->table); }

/* Close: what is under way goes on with the table that it has. Answers it, or NULL if closed before. */
static inline lapse_table *fast_close(PyObject *self) {
    cache_head *c = (cache_head *)self;
    lapse_table *t = RELAXED(&c->table);
    STORE(&c->quick, NULL);
    STORE(&c->direct, NULL);
    STORE(&c->table, NULL);
    return t;
}

/* An exact str knows its hash. -1 when the hash raised. */
static inline Py_hash_t fast_hash(PyObject *key) {
    if (LIKELY(PyUnicode_CheckExact(key))) {
        Py_hash_t hash = RELAXED(&((PyASCIIObject *)key)->hash);
        if (LIKELY(hash != -1)) return hash;
    }
    return PyObject_Hash(key);
}

/* A list of the objects behind owned references, which this takes over even if there is no memory for it. */
static PyObject *fast_taken_list(PyObject **owned, size_t n) {
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; i < n; i++) {
        if (list) PyList_SET_ITEM(list, (Py_ssize_t)i, owned[i]);
        else Py_DECREF(owned[i]);
    }
    return list;
}

/* --- Reading --- */

static void raise_busy(void) {
    PyErr_SetString(PyExc_RuntimeError, "the key's __eq__ changed the cache at every attempt");
}

/* The whole read under the native clock. NULL without an exception: absent. */
static NOINLINE PyObject *read_fully(lapse_table *t, PyObject *key, Py_hash_t hash) {
    PyObject *value = NULL;
    lapse_status status = lapse_get(t, key, (uint64_t)hash, LAPSE_NATIVE, &value);
    if (LIKELY(status == LAPSE_OK)) return value;
    if (status == LAPSE_BUSY) raise_busy();
    return NULL;
}

/* An exact str's read_quickly(); NULL: it is `*absent`, or the whole read must decide. */
INLINE PyObject *quick_value(PyObject *self, PyObject *key, bool *absent) {
    lapse_table *t = RELAXED(&((cache_head *)self)->quick);
    if (UNLIKELY(t == NULL) || UNLIKELY(!PyUnicode_CheckExact(key))) return NULL;
    Py_hash_t hash = RELAXED(&((PyASCIIObject *)key)->hash);
    if (UNLIKELY(hash == -1)) return NULL;
    PyObject *value = read_quickly(t, key, mix_hash((uint64_t)hash), false, 0, absent);
    if (LIKELY(value != NULL)) COUNT(t, hits);
    return value;
}

static NOINLINE PyObject *get_fully(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *names) {
    /* The table outlives a close() by the key's __hash__: `owned` keeps it. */
    lapse_table *t = RELAXED(&((cache_head *)self)->direct);
    if (t == NULL || names != NULL || nargs < 1 || nargs > 2) return behind.get(self, args, nargs, names);
    Py_hash_t hash = fast_hash(args[0]);
    if (hash == -1) return NULL;
    PyObject *value = read_fully(t, args[0], hash);
    if (value != NULL) return value;
    if (PyErr_Occurred()) return NULL;
    return Py_NewRef(nargs == 2 ? args[1] : Py_None);
}

/* A read has found no such key. */
static inline PyObject *missed(PyObject *self, PyObject *instead) {
    COUNT(((cache_head *)self)->owned, misses);
    return Py_NewRef(instead);
}

NO_CANARY static PyObject *fast_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *names) {
    if (LIKELY(names == NULL && nargs >= 1 && nargs <= 2)) {
        bool absent = false;
        PyObject *value = quick_value(self, args[0], &absent);
        if (LIKELY(value != NULL)) return value;
        if (absent) return missed(self, nargs == 2 ? args[1] : Py_None);
    }
    return get_fully(self, args, nargs, names);
}

static NOINLINE PyObject *subscript_fully(PyObject *self, PyObject *key) {
    lapse_table *t = RELAXED(&((cache_head *)self)->direct);
    if (t == NULL) return behind.subscript(self, key);
    Py_hash_t hash = fast_hash(key);
    if (hash == -1) return NULL;
    PyObject *value = read_fully(t, key, hash);
    if (value == NULL && !PyErr_Occurred()) {
        PyObject *args = PyTuple_Pack(1, key); /* a tuple key must not be taken for the arguments */
        if (args) PyErr_SetObject(PyExc_KeyError, args);
        Py_XDECREF(args);
    }
    return value;
}

NO_CANARY static PyObject *fast_subscript(PyObject *self, PyObject *key) {
    bool absent = false; /* the whole read says so, too */
    PyObject *value = quick_value(self, key, &absent);
    return LIKELY(value != NULL) ? value : subscript_fully(self, key);
}

/* The whole read of who would load a missing key. NULL without an exception: absent, or `*old` is a new reference
 * to the value that the caller should reload. */
static NOINLINE PyObject *read_to_load(lapse_table *t, PyObject *key, Py_hash_t hash, PyObject **old) {
    PyObject *value = NULL;
    lapse_status status = lapse_get_or_ticket(t, key, (uint64_t)hash, LAPSE_NATIVE, &value);
    if (LIKELY(status == LAPSE_OK)) return value;
    if (status == LAPSE_EARLY) *old = value;
    if (status == LAPSE_BUSY) raise_busy();
    return NULL;
}

#define LOAD_ARGS 8 /* what _load() takes at most, and room for `old` */

/* _load(*args, **names, old=old), which takes over `old`. */
static NOINLINE PyObject *load_old(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names,
                                   PyObject *old) {
    PyObject *all[LOAD_ARGS], *result = NULL;
    Py_ssize_t words = names ? PyTuple_GET_SIZE(names) : 0;
    PyObject *more = PyTuple_New(words + 1);
    if (more && nargs + words < LOAD_ARGS) {
        for (Py_ssize_t i = 0; i < nargs + words; i++) all[i] = args[i];
        for (Py_ssize_t i = 0; i < words; i++)
            PyTuple_SET_ITEM(more, i, Py_NewRef(PyTuple_GET_ITEM(names, i)));
        PyTuple_SET_ITEM(more, words, Py_NewRef(behind.old));
        all[nargs + words] = old;
        result = behind.load(self, all, nargs, more);
    } else if (more) {
        result = behind.load(self, args, nargs, names); /* says what is wrong */
    }
    Py_XDECREF(more);
    Py_DECREF(old);
    return result;
}

/* get_or_load(): a hit is a read; a miss, counted once, goes to _load(), and so does a value to be reloaded. */
static PyObject *fast_get_or_load(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    lapse_table *t = RELAXED(&((cache_head *)self)->direct);
    bool absent = false; /* the whole read says so, too */
    PyObject *old = NULL, *value = nargs >= 1 ? quick_value(self, args[0], &absent) : NULL;
    if (LIKELY(value != NULL)) return value;
    if (t == NULL || nargs < 2) return behind.get_or_load(self, args, nargs, names);
    Py_hash_t hash = fast_hash(args[0]);
    if (hash == -1) return NULL;
    value = read_to_load(t, args[0], hash, &old);
    if (UNLIKELY(old != NULL)) return load_old(self, args, nargs, names, old);
    if (value != NULL || PyErr_Occurred()) return value;
    return behind.load(self, args, nargs, names);
}

/* --- Writing --- */

/* 0 stored, 1 for the Cython method, -1 raised. */
INLINE int fast_put(PyObject *self, PyObject *key, PyObject *value) {
    lapse_table *t = RELAXED(&((cache_head *)self)->direct);
    if (UNLIKELY(t == NULL)) return 1;
    Py_hash_t hash = fast_hash(key);
    if (UNLIKELY(hash == -1)) return -1;
    PyObject *replaced;
    lapse_status status = lapse_put(t, key, (uint64_t)hash, value, LAPSE_DEFAULT, LAPSE_NATIVE, &replaced);
    if (UNLIKELY(status != LAPSE_OK)) {
        if (status == LAPSE_RAISED) return -1;
        return 1; /* the Cython method tries again and raises what is due */
    }
    Py_XDECREF(replaced);
    return 0;
}

/* set(key, value, tags=...): 0 stored, 1 for the Cython method, -1 raised. */
static int put_tagged(PyObject *self, PyObject *key, PyObject *value, PyObject *tags) {
    lapse_table *t = RELAXED(&((cache_head *)self)->direct);
    if (UNLIKELY(t == NULL) || !PyTuple_CheckExact(tags) || PyTuple_GET_SIZE(tags) > FEW_TAGS) return 1;
    tag_args a = {.held = NULL};
    Py_hash_t hash = fast_hash(key);
    PyObject *replaced;
    if (UNLIKELY(hash == -1)) return -1;
    if (UNLIKELY(!take_few(&a, tags))) return 1;
    lapse_status status =
        lapse_put_tagged(t, key, (uint64_t)hash, value, LAPSE_DEFAULT, &a.tags, LAPSE_NATIVE, &replaced);
    if (UNLIKELY(status != LAPSE_OK)) return status == LAPSE_RAISED ? -1 : 1;
    Py_XDECREF(replaced);
    return 0;
}

/* Is it a call with the one keyword tags=? */
static bool only_tags(PyObject *names) {
    return names != NULL && PyTuple_GET_SIZE(names) == 1 && PyTuple_GET_ITEM(names, 0) == behind.tags;
}

static PyObject *fast_set(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    if (nargs == 2 && UNLIKELY(only_tags(names))) {
        int done = put_tagged(self, args[0], args[1], args[2]);
        if (UNLIKELY(done == 1)) return behind.set(self, args, nargs, names);
        if (UNLIKELY(done < 0)) return NULL;
        Py_RETURN_NONE;
    }
    if (UNLIKELY(names != NULL || nargs != 2)) return behind.set(self, args, nargs, names);
    int done = fast_put(self, args[0], args[1]);
    if (UNLIKELY(done == 1)) return behind.set(self, args, nargs, names);
    if (UNLIKELY(done < 0)) return NULL;
    Py_RETURN_NONE;
}

static int fast_store(PyObject *self, PyObject *key, PyObject *value) {
    if (value == NULL) return behind.store(self, key, value);
    int done = fast_put(self, key, value);
    return done == 1 ? behind.store(self, key, value) : done;
}

/* --- Many at once --- */

/* Answer what a block can without running any code; then, one by one, the rest. `from` is where the
 * block stands in `out`, a list that nobody else can see yet. */
static int gather_block(lapse_table *t, lapse_block *b, Py_ssize_t from, int64_t now, PyObject *missing,
                        PyObject *out) {
    PyObject *values[LAPSE_BLOCK];
    lapse_status found[LAPSE_BLOCK];
    lapse_get_block(t, b, now, values, found);
    for (size_t i = 0; i < b->n; i++) {
        if (found[i] == LAPSE_ABSENT) Py_INCREF(values[i] = missing);
        if (found[i] != LAPSE_MORE) PyList_SET_ITEM(out, from + (Py_ssize_t)i, values[i]);
    }
    return 0;
}

static int gather_one(lapse_table *t, PyObject *key, int64_t now, PyObject *missing, PyObject **value) {
    Py_hash_t hash = PyObject_Hash(key);
    if (hash == -1) return -1;
    lapse_status status = lapse_get(t, key, (uint64_t)hash, now, value);
    if (status == LAPSE_RAISED) return -1;
    if (status == LAPSE_BUSY) {
        raise_busy();
        return -1;
    }
    if (status != LAPSE_OK) Py_INCREF(*value = missing);
    return 0;
}

/* Can the key be hashed and compared without running Python code? */
INLINE bool plain_key(PyObject *key) { return PyUnicode_CheckExact(key) || PyLong_CheckExact(key); }

/* The i-th of `n` keys, owned; a list may have changed while user code ran. */
static PyObject *key_at(PyObject *keys, Py_ssize_t i, Py_ssize_t n) {
    if (PySequence_Fast_GET_SIZE(keys) != n) {
        PyErr_SetString(PyExc_RuntimeError, "the list of keys changed size while it was read");
        return NULL;
    }
    return Py_NewRef(PySequence_Fast_GET_ITEM(keys, i));
}

/* A table whose segments the processor's own caches hold: fetching ahead would only cost. */
#define SMALL_SEGMENTS 24u

/* Fill `out` from the list or tuple `keys` of n, one read after the other, by one clock reading. */
static int gather_small(lapse_table *t, PyObject *keys, Py_ssize_t n, PyObject *missing, PyObject *out) {
    int64_t coarse = clock_coarse();
    bool absent = false; /* the whole read says so, too */
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *key = key_at(keys, i, n), *value = NULL;
        if (key == NULL) return -1;
        if (LIKELY(plain_key(key)))
            value = read_quickly(t, key, mix_hash((uint64_t)fast_hash(key)), true, coarse, &absent);
        if (LIKELY(value != NULL)) COUNT(t, hits);
        int failed = value == NULL && gather_one(t, key, LAPSE_NATIVE, missing, &value) < 0;
        Py_DECREF(key);
        if (UNLIKELY(failed)) return -1;
        PyList_SET_ITEM(out, i, value);
    }
    return 0;
}

/* The keys of a block, borrowed: no code runs before they are looked up. */
static int load_block(lapse_block *b, PyObject *keys, Py_ssize_t from, Py_ssize_t n) {
    if (PySequence_Fast_GET_SIZE(keys) != n) return -1;
    PyObject **items = PySequence_Fast_ITEMS(keys) + from;
    b->n = (size_t)(n - from < LAPSE_BLOCK ? n - from : LAPSE_BLOCK);
    for (size_t i = 0; i < b->n; i++) {
        b->keys[i] = plain_key(items[i]) ? items[i] : NULL;
        b->hashes[i] = b->keys[i] ? (uint64_t)fast_hash(items[i]) : 0;
    }
    return 0;
}

/* Fill `out`, a new list of n, from the list or tuple `keys`. */
static int gather_objects(lapse_table *t, PyObject *keys, Py_ssize_t n, int64_t now, PyObject *missing,
                          PyObject *out) {
    lapse_block b = {.integers = false};
    if (lapse_is_quick(t) && now == LAPSE_NATIVE && lapse_segments(t) <= SMALL_SEGMENTS)
        return gather_small(t, keys, n, missing, out);
    for (Py_ssize_t from = 0; from < n; from += LAPSE_BLOCK) {
        if (load_block(&b, keys, from, n) == 0) gather_block(t, &b, from, now, missing, out);
        for (Py_ssize_t i = from; i < from + (Py_ssize_t)b.n; i++) {
            if (PyList_GET_ITEM(out, i)) continue;
            PyObject *value, *key = key_at(keys, i, n);
            int failed = key == NULL || gather_one(t, key, now, missing, &value) < 0;
            Py_XDECREF(key);
            if (failed) return -1;
            PyList_SET_ITEM(out, i, value);
        }
    }
    return 0;
}

/* The hash of int(n), as PyObject_Hash() gives it: n modulo the prime 2^61 - 1, and never -1. */
INLINE uint64_t int_hash(int64_t n) {
    const uint64_t modulus = (UINT64_C(1) << 61) - 1;
    uint64_t size = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    int64_t hash = (int64_t)(size % modulus);
    if (n < 0) hash = -hash;
    return (uint64_t)(hash == -1 ? -2 : hash);
}

/* The same for n integers of `size` bytes at `data`, `stride` bytes apart. */
static int gather_integers(lapse_table *t, const char *data, Py_ssize_t n, Py_ssize_t stride,
                           int64_t (*load)(const char *), int64_t now, PyObject *missing, PyObject *out) {
    lapse_block b = {.integers = true};
    for (Py_ssize_t from = 0; from < n; from += LAPSE_BLOCK) {
        b.n = (size_t)(n - from < LAPSE_BLOCK ? n - from : LAPSE_BLOCK);
        for (size_t i = 0; i < b.n; i++) {
            b.ints[i] = load(data + (from + (Py_ssize_t)i) * stride);
            b.hashes[i] = int_hash(b.ints[i]);
        }
        gather_block(t, &b, from, now, missing, out);
        for (size_t i = 0; i < b.n; i++) {
            if (PyList_GET_ITEM(out, from + (Py_ssize_t)i)) continue;
            PyObject *value, *key = PyLong_FromLongLong(b.ints[i]);
            int failed = key == NULL || gather_one(t, key, now, missing, &value) < 0;
            Py_XDECREF(key);
            if (failed) return -1;
            PyList_SET_ITEM(out, from + (Py_ssize_t)i, value);
        }
    }
    return 0;
}

#define LOADER(name, type)                      \
    static int64_t load_##name(const char *p) { \
        type v;                                 \
        memcpy(&v, p, sizeof v);                \
        return (int64_t)v;                      \
    }
LOADER(i8, int8_t)
LOADER(i16, int16_t)
LOADER(i32, int32_t)
LOADER(i64, int64_t)
LOADER(u8, uint8_t)
LOADER(u16, uint16_t)
LOADER(u32, uint32_t)

typedef int64_t (*int_loader)(const char *);

/* The loader for a buffer's format, or NULL: not native integers that int64_t can hold. */
static int_loader loader_for(const Py_buffer *view) {
    const char *format = view->format ? view->format : "";
    if (view->ndim != 1 || format[0] == '\0' || format[1] != '\0') return NULL;
    bool is_signed = strchr("bhilq", format[0]) != NULL, is_unsigned = strchr("BHILQ", format[0]) != NULL;
    if (!is_signed && !is_unsigned) return NULL;
    switch (view->itemsize) {
    case 1: return is_signed ? load_i8 : load_u8;
    case 2: return is_signed ? load_i16 : load_u16;
    case 4: return is_signed ? load_i32 : load_u32;
    case 8: return is_signed ? load_i64 : NULL;
    default: return NULL;
    }
}

/* A list of values aligned with the keys. The list is untracked while it is filled: user code that
 * runs meanwhile cannot find it. */
static PyObject *filled_list(Py_ssize_t n) {
    PyObject *out = PyList_New(n);
    if (out) PyObject_GC_UnTrack(out);
    return out;
}
static PyObject *finish_list(PyObject *out, int failed) {
    if (out == NULL) return NULL;
    PyObject_GC_Track(out);
    if (failed) Py_CLEAR(out);
    return out;
}

/* gather() of any iterable. */
static PyObject *fast_gather(lapse_table *t, PyObject *keys, int64_t now, PyObject *missing) {
    /* Another thread may change a list at any time on a free-threaded build: read a copy there. */
    bool borrow = PyTuple_CheckExact(keys) || (!LAPSE_THREADS && PyList_CheckExact(keys));
    PyObject *own = borrow ? Py_NewRef(keys) : PySequence_Tuple(keys);
    if (own == NULL) return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(own);
    PyObject *out = filled_list(n);
    out = finish_list(out, out && gather_objects(t, own, n, now, missing, out) < 0);
    Py_DECREF(own);
    return out;
}

/* gather() of a buffer of integers; NotImplemented if it is none. */
static PyObject *fast_gather_buffer(lapse_table *t, PyObject *keys, int64_t now, PyObject *missing) {
    Py_buffer view;
    if (PyObject_GetBuffer(keys, &view, PyBUF_FORMAT | PyBUF_STRIDES) < 0) {
        PyErr_Clear();
        Py_RETURN_NOTIMPLEMENTED;
    }
    int_loader load = loader_for(&view);
    if (load == NULL) {
        PyBuffer_Release(&view);
        Py_RETURN_NOTIMPLEMENTED;
    }
    Py_ssize_t n = view.shape[0];
    PyObject *out = filled_list(n);
    out = finish_list(out,
                      out && gather_integers(t, view.buf, n, view.strides[0], load, now, missing, out) < 0);
    PyBuffer_Release(&view);
    return out;
}

/* --- Memos: functions whose results are kept in a cache --- */

/* How every Memo begins; _core.pyx declares the same fields first, and says what they mean. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call; /* NULL until the memo is open */
    PyObject *cache, *function, *key_of, *prefix, *left_out, *target;
    Py_ssize_t least, named, most;
    int lone, typed, bound, alone;
} memo_head;

enum { LONE_NEVER, LONE_PLAIN, LONE_ALWAYS }; /* is a lone argument its own key? */

/* Written once, in fast_install_memo(). */
static struct {
    PyObject *absent; /* what no function returns; in a key, what stands before arguments with names */
    PyObject *miss;   /* the interned name of the method that loads */
} memos;

static bool lone_key(const memo_head *m, PyObject *arg) {
    return m->lone == LONE_ALWAYS ||
           (m->lone == LONE_PLAIN && (PyUnicode_CheckExact(arg) || PyLong_CheckExact(arg)));
}

/* Put `n` objects into a new tuple from `at` on; where they end. */
static Py_ssize_t tuple_add(PyObject *tuple, Py_ssize_t at, PyObject *const *items, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) PyTuple_SET_ITEM(tuple, at + i, Py_NewRef(items[i]));
    return at + n;
}

/* A key of several parts, or of one that is not its own: the prefix, the arguments, those left out, the
 * names and values of keywords, and the types of all that. `self`: the id() that stands for the first. */
static NOINLINE PyObject *memo_tuple(const memo_head *m, PyObject *self, PyObject *const *args,
                                     Py_ssize_t nargs, PyObject *names) {
    Py_ssize_t given = (nargs < m->named ? nargs : m->named) - m->least;
    Py_ssize_t left = PyTuple_GET_SIZE(m->left_out) - given, words = names ? PyTuple_GET_SIZE(names) : 0;
    Py_ssize_t size = (m->prefix != Py_None) + nargs + left + (names ? 1 + 2 * words : 0), n = 0;
    if (nargs == 0 && size == 1 && left == 1 && lone_key(m, PyTuple_GET_ITEM(m->left_out, given)))
        return Py_NewRef(PyTuple_GET_ITEM(m->left_out, given));
    PyObject *key = PyTuple_New(m->typed ? 2 * size : size);
    if (key == NULL) return NULL;
    if (m->prefix != Py_None) n = tuple_add(key, n, &m->prefix, 1);
    if (self) n = tuple_add(key, n, &self, 1);
    n = tuple_add(key, n, args + (self != NULL), nargs - (self != NULL));
    if (left) n = tuple_add(key, n, &PyTuple_GET_ITEM(m->left_out, given), left);
    if (names) n = tuple_add(key, n, &memos.absent, 1);
    for (Py_ssize_t i = 0; i < words; i++) {
        n = tuple_add(key, n, &PyTuple_GET_ITEM(names, i), 1);
        n = tuple_add(key, n, args + nargs + i, 1);
    }
    for (Py_ssize_t i = 0; m->typed && i < size; i++) {
        PyObject *type = (PyObject *)Py_TYPE(PyTuple_GET_ITEM(key, i));
        n = tuple_add(key, n, &type, 1);
    }
    return key;
}

/* The key of a call. */
INLINE PyObject *memo_key(const memo_head *m, PyObject *const *args, Py_ssize_t nargs, PyObject *names) {
    bool planned = names ? m->key_of == Py_None : nargs >= m->least && nargs <= m->most && nargs >= m->bound;
    if (UNLIKELY(!planned)) return PyObject_Vectorcall(m->key_of, args, (size_t)nargs, names);
    if (LIKELY(nargs == 1 && names == NULL) && LIKELY(lone_key(m, args[0]))) return Py_NewRef(args[0]);
    if (!m->bound) return memo_tuple(m, NULL, args, nargs, names);
    PyObject *self = PyLong_FromVoidPtr(args[0]);
    PyObject *key = self ? memo_tuple(m, self, args, nargs, names) : NULL;
    Py_XDECREF(self);
    return key;
}

/* A hit's value; NULL without an exception: a miss, which has been counted, or `*old` is to be reloaded. `*hash` is
 * that of the key if it was needed. */
INLINE PyObject *memo_value(PyObject *cache, PyObject *key, Py_hash_t *hash, PyObject **old) {
    bool absent = false; /* the whole read says so, too */
    PyObject *value = quick_value(cache, key, &absent);
    if (LIKELY(value != NULL)) return value;
    lapse_table *t = RELAXED(&((cache_head *)cache)->direct);
    if (LIKELY(t != NULL)) {
        *hash = fast_hash(key);
        return *hash == -1 ? NULL : read_to_load(t, key, *hash, old);
    }
    PyObject *args[2] = {key, memos.absent};
    value = behind.get(cache, args, 2, NULL);
    if (value == memos.absent) Py_CLEAR(value);
    return value;
}

/* Store what a call returned unless that is outdated, or another call has stored the key meanwhile. */
static lapse_status memo_store(lapse_table *t, lapse_lease *lease, PyObject *key, Py_hash_t hash,
                               PyObject *value) {
    lapse_item there;
    PyObject *replaced = NULL;
    lapse_status status = lapse_peek(t, key, (uint64_t)hash, LAPSE_NATIVE, &there);
    if (status == LAPSE_OK) lapse_release(&there, 1);
    if (status != LAPSE_ABSENT && status != LAPSE_EXPIRED) return status;
    status = lapse_fill(t, lease, value, LAPSE_DEFAULT, NULL, false, LAPSE_NATIVE, &replaced);
    if (status == LAPSE_OK) Py_XDECREF(replaced);
    return status;
}

/* Run the function, whoever else may be running it, and store the value unless the cache has been closed.
 * The table outlives that: `owned` keeps it. */
static NOINLINE PyObject *memo_run(const memo_head *m, PyObject *key, Py_hash_t hash, PyObject *const *args,
                                   Py_ssize_t nargs, PyObject *names) {
    lapse_table *t = ((cache_head *)m->cache)->owned;
    lapse_lease *lease;
    if (lapse_lease_take(t, key, (uint64_t)hash, &lease) != LAPSE_OK) return PyErr_NoMemory();
    PyObject *value = PyObject_Vectorcall(m->function, args, (size_t)nargs, names);
    bool wanted = value != NULL && fast_table(m->cache) != NULL;
    lapse_status status = wanted ? memo_store(t, lease, key, hash, value) : LAPSE_OK;
    lapse_lease_end(t, lease);
    if (status == LAPSE_NO_MEMORY) PyErr_NoMemory();
    if (UNLIKELY(value && PyErr_Occurred())) Py_CLEAR(value);
    return value;
}

static PyObject *memo_keywords(PyObject *const *values, PyObject *names) {
    PyObject *kwargs = PyDict_New();
    for (Py_ssize_t i = 0; kwargs && names && i < PyTuple_GET_SIZE(names); i++)
        if (PyDict_SetItem(kwargs, PyTuple_GET_ITEM(names, i), values[i]) < 0) Py_CLEAR(kwargs);
    return kwargs;
}

/* self._miss(key, args, kwargs), or with the value that is to be reloaded, which this takes over. */
static NOINLINE PyObject *memo_miss(PyObject *self, PyObject *key, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *names, PyObject *old) {
    PyObject *value = NULL, *tuple = PyTuple_New(nargs), *kwargs = memo_keywords(args + nargs, names);
    if (tuple) tuple_add(tuple, 0, args, nargs);
    if (tuple && kwargs) value = PyObject_CallMethodObjArgs(self, memos.miss, key, tuple, kwargs, old, NULL);
    Py_XDECREF(tuple);
    Py_XDECREF(kwargs);
    Py_XDECREF(old);
    return value;
}

static PyObject *memo_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names) {
    const memo_head *m = (memo_head *)self;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    Py_hash_t hash = -1;
    if (names && PyTuple_GET_SIZE(names) == 0) names = NULL;
    PyObject *key = memo_key(m, args, nargs, names);
    if (UNLIKELY(key == NULL)) return NULL;
    PyObject *old = NULL, *value = memo_value(m->cache, key, &hash, &old);
    if (UNLIKELY(value == NULL) && !PyErr_Occurred())
        value = m->alone && hash != -1 ? memo_run(m, key, hash, args, nargs, names)
                                       : memo_miss(self, key, args, nargs, names, old);
    Py_DECREF(key);
    return value;
}

/* The key of a call, for those who do not call; `all` are the arguments, those with names at the end. */
static PyObject *fast_memo_key(PyObject *self, PyObject *all, PyObject *names) {
    Py_ssize_t words = PyTuple_GET_SIZE(names), nargs = PyTuple_GET_SIZE(all) - words;
    return memo_key((memo_head *)self, &PyTuple_GET_ITEM(all, 0), nargs, words ? names : NULL);
}

static PyObject *memo_hand_on(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names) {
    return PyObject_Vectorcall(((memo_head *)self)->target, args, nargsf, names);
}

/* The memo's fields are set: calls may come. */
static void fast_memo_open(PyObject *self) {
    memo_head *m = (memo_head *)self;
    m->call = m->target == Py_None ? memo_call : memo_hand_on;
}

/* Calls of a new subclass, and of its instances as methods, take no detour: the interpreter does not
 * let classes made by a `class` statement inherit this. */
static void fast_memo_type(PyTypeObject *type) {
    type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR;
    PyType_Modified(type);
}

/* --- Garbage collection --- */

static int cache_traverse(PyObject *self, visitproc visit, void *arg) {
    int stop = behind.traverse ? behind.traverse(self, visit, arg) : 0;
    lapse_table *t = ((cache_head *)self)->owned;
    return stop || t == NULL ? stop : lapse_traverse(t, visit, arg);
}

static int cache_clear(PyObject *self) {
    cache_head *c = (cache_head *)self;
    lapse_item removed[LAPSE_STEP];
    size_t n;
    if (c->owned && lapse_detach(c->owned) == LAPSE_OK)
        for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
            status = lapse_drain(c->owned, removed, &n);
            lapse_release(removed, n);
        }
    return behind.clear ? behind.clear(self) : 0;
}

/* --- Waiting for others --- */

#if LAPSE_THREADS
static int stop_visiting(PyObject *o, void *arg) { return (void)o, (void)arg, 0; }

/* The stops of all threads, for whatever table. None may be under way at a fork, or when the interpreter begins to
 * end: stops.py says why. */
static struct {
    uint64_t under_way;
    uint64_t held; /* by how many threads that are about to fork */
    bool ended; /* for good: who is forked, or started anew, after that keeps its memory */
} stops;

/* A table's quiesce(): to visit objects the interpreter stops all threads, each where it runs no C code of ours, or
 * waits, or gives up a reference. */
static bool fast_quiesce(void) {
    ADD(&stops.under_way, 1);
    FULL_FENCE(); /* pairs with that of who forbids stops: this thread sees its mark, or it sees this thread */
    bool may = !RELAXED(&stops.ended) && RELAXED(&stops.held) == 0;
    if (may) PyUnstable_GC_VisitObjects(stop_visiting, NULL);
    PUBLISH_ADD(&stops.under_way, (uint64_t)-1); /* release: pairs with stops_under_way() */
    return may;
}

static bool stops_under_way(void) {
    FULL_FENCE(); /* pairs with fast_quiesce() */
    return ACQUIRE(&stops.under_way) != 0; /* acquire: pairs with fast_quiesce() */
}

/* No stop begins any more; is one under way? Another interpreter than the first ends when it has no other thread. */
static bool fast_end_stops(void) {
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) return false;
    STORE(&stops.ended, true);
    return stops_under_way();
}

/* One more thread holds stops (1), or lets go (-1); or nothing changes (0). Is one under way? */
static bool fast_hold_stops(int more) {
    ADD(&stops.held, (uint64_t)(int64_t)more);
    return stops_under_way();
}

/* In the child of a fork, before there is a second thread. */
static void fast_forget_stops(void) {
    STORE(&stops.under_way, 0);
    STORE(&stops.held, 0);
}
#else
static bool fast_quiesce(void) { return true; }
static bool fast_end_stops(void) { return false; }
static bool fast_hold_stops(int more) { return (void)more, false; }
static void fast_forget_stops(void) {}
#endif

/* --- Putting it in place --- */

/* A heap subclass takes its slots from the wrappers in the base's dict, not from the base's slots. */
static int rewrap(PyTypeObject *type, const char *name, void *slot) {
    PyObject *found = PyDict_GetItemString(type->tp_dict, name);
    if (found == NULL || !Py_IS_TYPE(found, &PyWrapperDescr_Type)) {
        PyErr_Format(PyExc_SystemError, "lapse: %s is not a slot wrapper", name);
        return -1;
    }
    ((PyWrapperDescrObject *)found)->d_wrapped = slot;
    return 0;
}

static int fast_install(PyTypeObject *type) {
    behind.tags = PyUnicode_InternFromString("tags");
    behind.old = PyUnicode_InternFromString("old");
    if (behind.tags == NULL || behind.old == NULL) return -1;
    if (put_in_front(type, "get", fast_get, &behind.get) < 0) return -1;
    if (put_in_front(type, "set", fast_set, &behind.set) < 0) return -1;
    if (put_in_front(type, "get_or_load", fast_get_or_load, &behind.get_or_load) < 0) return -1;
    PyMethodDef *load = method_of(type, "_load");
    if (load == NULL) return -1;
    behind.load = (FastMethod)(void (*)(void))load->ml_meth;
    behind.subscript = type->tp_as_mapping->mp_subscript;
    type->tp_as_mapping->mp_subscript = fast_subscript;
    if (rewrap(type, "__getitem__", (void *)fast_subscript) < 0) return -1;
    behind.store = type->tp_as_mapping->mp_ass_subscript;
    type->tp_as_mapping->mp_ass_subscript = fast_store;
    if (rewrap(type, "__setitem__", (void *)fast_store) < 0) return -1;
    if (rewrap(type, "__delitem__", (void *)fast_store) < 0) return -1;
    behind.traverse = type->tp_traverse;
    type->tp_traverse = cache_traverse;
    behind.clear = type->tp_clear;
    type->tp_clear = cache_clear;
    return 0;
}

static int fast_install_memo(PyTypeObject *type, PyObject *absent) {
    memos.absent = Py_NewRef(absent);
    memos.miss = PyUnicode_InternFromString("_miss");
    if (memos.miss == NULL) return -1;
    type->tp_vectorcall_offset = offsetof(memo_head, call);
    type->tp_call = PyVectorcall_Call;
    fast_memo_type(type);
    return rewrap(type, "__call__", (void *)PyVectorcall_Call);
}

#endif
