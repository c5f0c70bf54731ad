/* The tags= of a call, as the table takes them: exact str objects, all different, with their hashes.
 *
 * The usual few tags in a tuple are taken as they stand; anything else becomes a tuple of its own first.
 */
#ifndef LAPSE_LABELS_H
#define LAPSE_LABELS_H

#include "lapse.h"

#define FEW_TAGS 8

typedef struct {
    lapse_tags tags;
    PyObject *held; /* a tuple that keeps the names alive, or NULL: the caller does */
    PyObject **heap;
    PyObject *few_names[FEW_TAGS];
    uint64_t few_hashes[FEW_TAGS];
} tag_args;

static void tag_args_drop(tag_args *a) {
    PyMem_Free(a->heap);
    Py_CLEAR(a->held);
}

/* Take the items of a tuple of at most FEW_TAGS; false if one is not an exact str or is there twice. */
INLINE bool take_few(tag_args *a, PyObject *tuple) {
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(tuple, i);
        if (!PyUnicode_CheckExact(name)) return false;
        a->few_names[i] = name;
        a->few_hashes[i] = (uint64_t)PyObject_Hash(name);
        for (Py_ssize_t k = 0; k < i; k++)
            if (a->few_hashes[k] == a->few_hashes[i]) return false;
    }
    a->tags = (lapse_tags){(size_t)n, a->few_names, a->few_hashes};
    return true;
}

/* A tuple of exact, different str from any iterable of str. */
static PyObject *plain_tags(PyObject *tags) {
    PyObject *names = NULL, *set = PySet_New(NULL), *items = set ? PyObject_GetIter(tags) : NULL, *item;
    while (items && (item = PyIter_Next(items))) {
        PyObject *name = NULL;
        if (PyUnicode_Check(item)) name = PyUnicode_FromObject(item); /* exact */
        else PyErr_Format(PyExc_TypeError, "a tag must be a str, not %.100s", Py_TYPE(item)->tp_name);
        int failed = name == NULL || PySet_Add(set, name) < 0;
        Py_XDECREF(name);
        Py_DECREF(item);
        if (failed) break;
    }
    if (items && !PyErr_Occurred()) names = PySequence_Tuple(set);
    Py_XDECREF(items);
    Py_XDECREF(set);
    return names;
}

static int take_many(tag_args *a) {
    Py_ssize_t n = PyTuple_GET_SIZE(a->held);
    a->heap = PyMem_Malloc((size_t)n * (sizeof(PyObject *) + sizeof(uint64_t)));
    if (a->heap == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    uint64_t *hashes = (uint64_t *)(void *)(a->heap + n);
    for (Py_ssize_t i = 0; i < n; i++) {
        a->heap[i] = PyTuple_GET_ITEM(a->held, i);
        hashes[i] = (uint64_t)PyObject_Hash(a->heap[i]);
    }
    a->tags = (lapse_tags){(size_t)n, a->heap, hashes};
    return 0;
}

/* Read tags=. A lone str is refused: its letters would be the tags. 0, or -1 with TypeError or MemoryError; in
 * either case the caller calls tag_args_drop(). */
static int tag_args_fill(tag_args *a, PyObject *tags) {
    a->tags = (lapse_tags){0, NULL, NULL};
    a->held = NULL;
    a->heap = NULL;
    if (PyTuple_CheckExact(tags) && PyTuple_GET_SIZE(tags) <= FEW_TAGS && take_few(a, tags)) return 0;
    if (PyUnicode_Check(tags) || PyBytes_Check(tags)) {
        PyErr_SetString(PyExc_TypeError, "tags must be an iterable of str, not one str: tags=(tag,)");
        return -1;
    }
    a->held = plain_tags(tags);
    if (a->held == NULL) return -1;
    if (PyTuple_GET_SIZE(a->held) <= FEW_TAGS && take_few(a, a->held)) return 0;
    return take_many(a);
}

#endif
