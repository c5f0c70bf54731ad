/* The fast entry of NativeQueue.invalidate_key(): a positional key, an open queue, the native clock.
 *
 * What it cannot answer goes to the Cython method behind it, so that _queue.pyx alone says what the
 * method does.
 */
#ifndef LAPSE_PRODUCER_H
#define LAPSE_PRODUCER_H

#include "_methods.h"
#include "clock.h"
#include "queue.h"

/* How every NativeQueue begins; _queue.pyx declares the same field first. */
typedef struct {
    PyObject_HEAD
    lapse_queue *direct; /* the ring; NULL before it is there, and under a caller's clock */
} queue_head;

/* The Cython method behind the fast entry: written once, in producer_install(). */
static FastMethod invalidate_key_behind;

/* What a push asks for that is more than nothing: see NativeQueue._signal(). */
static NOINLINE PyObject *signal_of(PyObject *self, queue_status status) {
    return PyObject_CallMethod(self, "_signal", "i", (int)status);
}

NO_CANARY static PyObject *fast_invalidate_key(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                               PyObject *names) {
    lapse_queue *q = ((queue_head *)self)->direct;
    if (UNLIKELY(q == NULL || names != NULL || nargs != 1))
        return invalidate_key_behind(self, args, nargs, names);
    PyObject *key = args[0];
    /* An exact str is always hashable: that it is hashed is the consumer's concern. */
    if (!PyUnicode_CheckExact(key) && PyObject_Hash(key) == -1) return NULL;
    Py_INCREF(key);
    queue_status status = queue_push(q, QUEUE_KEY, key, clock_coarse());
    if (LIKELY(status == QUEUE_PUSHED)) Py_RETURN_NONE;
    if (status < QUEUE_FULL) return signal_of(self, status);
    Py_DECREF(key);
    return invalidate_key_behind(self, args, nargs, names);
}

static int producer_install(PyTypeObject *type) {
    return put_in_front(type, "invalidate_key", fast_invalidate_key, &invalidate_key_behind);
}

#endif
