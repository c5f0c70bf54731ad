/* The seam: everything that the table does to a key or a value, and the locks it takes.
 *
 * Two bodies. The first is CPython's. The second (LAPSE_PLAIN) knows nothing of Python: the C tests
 * run the very same table under sanitizers and a fuzzer with it.
 *
 *   object_ref(o)  object_unref(o)   take or give up a reference; unref may run any code
 *   object_mark(o)                   allow object_try_ref() by other threads; before publication
 *   object_try_ref(o)                take a reference unless the object is already dying
 *   object_same(a, b)                C-only comparison: SAME, DIFFERENT, or ASK
 *   object_equal(a, b)               full comparison, may run any code; -1 when it raised
 *   object_is_int(o, n)              is it exactly the integer n? C only
 *   object_is_str(o)                 is it an exact str?
 *   object_is_gc(o)                  can the object be part of a reference cycle?
 *   lapse_lock, lock_init/take/drop  a short mutex; compiled away on a GIL build
 *   lock_try(m)                      take it if nobody has it
 */
#ifndef LAPSE_OBJECT_H
#define LAPSE_OBJECT_H

#ifndef LAPSE_PLAIN
#  define PY_SSIZE_T_CLEAN
#  include <Python.h>
#endif

#include "atomics.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef enum { DIFFERENT = 0, SAME = 1, ASK = 2 } sameness;

#ifndef LAPSE_PLAIN
typedef PyObject lapse_object;

INLINE void object_ref(lapse_object *o) { Py_INCREF(o); }
INLINE void object_unref(lapse_object *o) { Py_DECREF(o); }
INLINE bool object_is_gc(lapse_object *o) { return PyType_HasFeature(Py_TYPE(o), Py_TPFLAGS_HAVE_GC); }
INLINE int object_equal(lapse_object *stored, lapse_object *key) {
    return PyObject_RichCompareBool(stored, key, Py_EQ);
}

INLINE bool text_same(lapse_object *a, lapse_object *b) {
    if (PyUnicode_GET_LENGTH(a) != PyUnicode_GET_LENGTH(b)) return false;
    if (PyUnicode_KIND(a) != PyUnicode_KIND(b)) return false;
    return memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b),
                  (size_t)PyUnicode_GET_LENGTH(a) * (size_t)PyUnicode_KIND(a)) == 0;
}
INLINE bool bytes_same(lapse_object *a, lapse_object *b) {
    return PyBytes_GET_SIZE(a) == PyBytes_GET_SIZE(b) &&
           memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), (size_t)PyBytes_GET_SIZE(a)) == 0;
}
INLINE bool object_is_str(lapse_object *o) { return PyUnicode_CheckExact(o); }
INLINE bool object_is_plain(lapse_object *o) {
    return PyUnicode_CheckExact(o) || PyLong_CheckExact(o) || PyBytes_CheckExact(o);
}
/* Two keys whose hashes are equal. Exact str, int and bytes compare without running Python code, and are
 * never equal to one another; a subclass may have its own __eq__, and containers hold objects that may. */
INLINE sameness object_same(lapse_object *stored, lapse_object *key) {
    PyTypeObject *type = Py_TYPE(stored);
    if (type != Py_TYPE(key)) return object_is_plain(stored) && object_is_plain(key) ? DIFFERENT : ASK;
    if (LIKELY(type == &PyUnicode_Type)) return text_same(stored, key) ? SAME : DIFFERENT;
    if (type == &PyLong_Type) return PyObject_RichCompareBool(stored, key, Py_EQ) ? SAME : DIFFERENT;
    if (type == &PyBytes_Type) return bytes_same(stored, key) ? SAME : DIFFERENT;
    return ASK;
}

INLINE bool object_is_int(lapse_object *o, int64_t n) {
    int overflow = 0;
    return PyLong_CheckExact(o) && PyLong_AsLongLongAndOverflow(o, &overflow) == n && overflow == 0;
}

#  if LAPSE_THREADS
#    if PY_VERSION_HEX >= 0x030E0000
INLINE bool object_try_ref(lapse_object *o) { return PyUnstable_TryIncRef(o) != 0; }
INLINE void object_mark(lapse_object *o) { PyUnstable_EnableTryIncRef(o); }
#    else
/* 3.13t has no public call: these follow the reference count's documented layout (Include/object.h:
 * two flag bits under the shared count; 0 = owned by one thread alone, 3 = merged). */
#      define SHARED_MAYBE_WEAKREF 1
INLINE bool object_try_ref(lapse_object *o) {
    uint32_t local = _Py_atomic_load_uint32_relaxed(&o->ob_ref_local);
    if (local == _Py_IMMORTAL_REFCNT_LOCAL) return true;
    if (_Py_IsOwnedByCurrentThread(o)) {
        _Py_atomic_store_uint32_relaxed(&o->ob_ref_local, local + 1);
        return true;
    }
    Py_ssize_t shared = _Py_atomic_load_ssize_relaxed(&o->ob_ref_shared);
    do {
        if (shared == 0 || shared == _Py_REF_MERGED) return false;
    } while (
        !_Py_atomic_compare_exchange_ssize(&o->ob_ref_shared, &shared, shared + (1 << _Py_REF_SHARED_SHIFT)));
    return true;
}
INLINE void object_mark(lapse_object *o) {
    for (;;) {
        Py_ssize_t shared = _Py_atomic_load_ssize_relaxed(&o->ob_ref_shared);
        if ((shared & _Py_REF_SHARED_FLAG_MASK) != 0) return;
        if (_Py_atomic_compare_exchange_ssize(&o->ob_ref_shared, &shared, shared | SHARED_MAYBE_WEAKREF))
            return;
    }
}
#    endif
typedef PyMutex lapse_lock;
#    define lock_init(m) memset((m), 0, sizeof *(m))
#    define lock_take(m) PyMutex_Lock(m)
#    define lock_drop(m) PyMutex_Unlock(m)
/* What PyMutex_Lock() does inline before it waits (Include/cpython/lock.h); there is no call for it. */
INLINE bool lock_try(lapse_lock *m) {
    uint8_t unlocked = 0;
    return _Py_atomic_compare_exchange_uint8(&m->_bits, &unlocked, 1) != 0;
}
#  else
INLINE bool object_try_ref(lapse_object *o) {
    Py_INCREF(o);
    return true;
}
INLINE void object_mark(lapse_object *o) { (void)o; }
#  endif

#else /* LAPSE_PLAIN */

#  ifndef AT_UNREF
#    define AT_UNREF() ((void)0) /* csrc/tests/pauses.h */
#  endif

/* A test object: type-stable (its memory outlives the table), counted, compared by `id`. `on_equal`
 * and `on_death` stand for the user code that Python may run. */
typedef struct lapse_object {
    int64_t references;
    uint64_t id;
    bool needs_asking, gc;
    const char *text; /* what object_text() answers, or NULL */
    int (*on_equal)(struct lapse_object *, struct lapse_object *);
    void (*on_death)(struct lapse_object *);
} lapse_object;

#  if LAPSE_THREADS && defined(LAPSE_YIELD)
INLINE bool object_try_ref(lapse_object *o) { return RELAXED(&o->references) > 0 && o->references++ > 0; }
INLINE void object_ref(lapse_object *o) { o->references++; }
INLINE void object_unref(lapse_object *o) {
    if (--o->references == 0 && o->on_death) o->on_death(o);
}
#  elif LAPSE_THREADS
INLINE bool object_try_ref(lapse_object *o) {
    int64_t n = RELAXED(&o->references);
    while (n > 0)
        if (__atomic_compare_exchange_n(&o->references, &n, n + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return true;
    return false;
}
INLINE void object_ref(lapse_object *o) { ADD(&o->references, 1); }
INLINE void object_unref(lapse_object *o) {
    if (__atomic_sub_fetch(&o->references, 1, __ATOMIC_ACQ_REL) == 0 && o->on_death) o->on_death(o);
    AT_UNREF();
}
#  else
INLINE bool object_try_ref(lapse_object *o) {
    o->references++;
    return true;
}
INLINE void object_ref(lapse_object *o) { o->references++; }
INLINE void object_unref(lapse_object *o) {
    if (--o->references == 0 && o->on_death) o->on_death(o);
}
#  endif
INLINE void object_mark(lapse_object *o) { (void)o; }
INLINE bool object_is_gc(lapse_object *o) { return o->gc; }
INLINE bool object_is_int(lapse_object *o, int64_t n) { return o->id == (uint64_t)n; }
INLINE bool object_is_str(lapse_object *o) { return o->text != NULL; }
INLINE sameness object_same(lapse_object *stored, lapse_object *key) {
    if (stored->needs_asking || key->needs_asking) return ASK;
    return stored->id == key->id ? SAME : DIFFERENT;
}
INLINE int object_equal(lapse_object *stored, lapse_object *key) {
    if (key->on_equal) return key->on_equal(stored, key);
    return stored->id == key->id;
}
#  if LAPSE_THREADS && defined(LAPSE_YIELD)
typedef struct {
    bool held;
} lapse_lock;
INLINE void lock_init(lapse_lock *m) { m->held = false; }
INLINE void lock_take(lapse_lock *m) {
    lapse_yield();
    while (m->held) lapse_wait();
    m->held = true;
    FULL_FENCE();
}
INLINE void lock_drop(lapse_lock *m) {
    FULL_FENCE();
    m->held = false;
    lapse_yield();
}
INLINE bool lock_try(lapse_lock *m) {
    lapse_yield();
    if (m->held) return false;
    m->held = true;
    FULL_FENCE();
    return true;
}
#  elif LAPSE_THREADS
#    include <pthread.h>
typedef pthread_mutex_t lapse_lock;
#    define lock_init(m) pthread_mutex_init((m), NULL)
#    define lock_take(m) pthread_mutex_lock(m)
#    define lock_drop(m) pthread_mutex_unlock(m)
#    define lock_try(m) (pthread_mutex_trylock(m) == 0)
#  endif
#endif

#if !LAPSE_THREADS
typedef struct {
    char unused;
} lapse_lock;
#  define lock_init(m) ((void)(m))
#  define lock_take(m) ((void)(m))
#  define lock_drop(m) ((void)(m))
#  define lock_try(m) ((void)(m), true)
#endif

#endif
