/* Methods of Cython types, as Cython has no syntax for them: C entries in front, descriptors for subclasses.
 *
 *   put_in_front()      gives a method another entry, and answers the one that was there. Once, when the
 *                       module starts, before any subclass or instance exists
 *   describe_methods()  gives a subclass method descriptors of its own: the interpreter specialises calls
 *                       only for the exact type
 */
#ifndef LAPSE_METHODS_H
#define LAPSE_METHODS_H

#include <Python.h>

#if PY_VERSION_HEX >= 0x030D0000
typedef PyCFunctionFastWithKeywords FastMethod;
#else
typedef _PyCFunctionFastWithKeywords FastMethod;
#endif

static PyMethodDef *method_of(PyTypeObject *type, const char *name) {
    PyObject *found = PyDict_GetItemString(type->tp_dict, name);
    if (found && Py_IS_TYPE(found, &PyMethodDescr_Type)) return ((PyMethodDescrObject *)found)->d_method;
    PyErr_Format(PyExc_SystemError, "lapse: %s is not a method of its own", name);
    return NULL;
}

static int put_in_front(PyTypeObject *type, const char *name, FastMethod entry, FastMethod *method) {
    PyMethodDef *def = method_of(type, name);
    if (def == NULL) return -1;
    if (def->ml_flags != (METH_FASTCALL | METH_KEYWORDS)) {
        PyErr_Format(PyExc_SystemError, "lapse: %s has another calling convention", name);
        return -1;
    }
    *method = (FastMethod)(void (*)(void))def->ml_meth;
    def->ml_meth = (PyCFunction)(void (*)(void))entry;
    return 0;
}

/* Does `name`, looked up on the subclass, still mean the native method `def`? */
static int still_native(PyTypeObject *cls, PyObject *name, const PyMethodDef *def) {
    PyObject *found = PyObject_GetAttr((PyObject *)cls, name);
    if (found == NULL) return -1;
    int same = Py_IS_TYPE(found, &PyMethodDescr_Type) && ((PyMethodDescrObject *)found)->d_method == def;
    Py_DECREF(found);
    return same;
}

static int describe_one(PyTypeObject *cls, PyObject *name, PyObject *method) {
    PyMethodDef *def = ((PyMethodDescrObject *)method)->d_method;
    int native = still_native(cls, name, def);
    if (native <= 0) return native;
    PyObject *own = PyDescr_NewMethod(cls, def);
    int failed = own == NULL || PyObject_SetAttr((PyObject *)cls, name, own) < 0;
    Py_XDECREF(own);
    return failed ? -1 : 0;
}

/* Give `cls`, a new subclass of `type`, descriptors of its own for every native method that it does
 * not override. */
static int describe_methods(PyTypeObject *cls, PyTypeObject *type) {
    PyObject *name, *method;
    Py_ssize_t at = 0;
    while (PyDict_Next(type->tp_dict, &at, &name, &method))
        if (Py_IS_TYPE(method, &PyMethodDescr_Type) && describe_one(cls, name, method) < 0) return -1;
    return 0;
}

#endif
