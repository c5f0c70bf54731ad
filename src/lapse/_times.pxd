# A ttl as users write it, turned into the table's nanoseconds.

from cpython.datetime cimport (
    PyDelta_Check,
    timedelta_days,
    timedelta_microseconds,
    timedelta_seconds,
)
from libc.math cimport llrint
from libc.stdint cimport int64_t

from lapse._lapse cimport LAPSE_DEFAULT, LAPSE_NEVER


cdef inline int64_t lifetime(object ttl) except? -2:
    """A ttl in seconds (int, float or timedelta; None = default) as nanoseconds.

    What lies beyond 9.2e18 ns, about 292 years, never expires. ValueError names a wrong ttl.
    """
    if ttl is None:
        return LAPSE_DEFAULT
    if isinstance(ttl, float):
        return lifetime_of_float(ttl)
    cdef object nanoseconds, seconds
    if PyDelta_Check(ttl):
        seconds = <int64_t>timedelta_days(ttl) * 86400 + timedelta_seconds(ttl)
        nanoseconds = seconds * 1_000_000_000 + timedelta_microseconds(ttl) * 1000
    elif isinstance(ttl, int) and not isinstance(ttl, bool):
        nanoseconds = int(ttl) * 1_000_000_000
    else:
        raise ValueError(f"ttl must be a number of seconds, a timedelta or None, not {ttl!r}")
    if nanoseconds <= 0:
        raise ValueError(f"ttl must be positive, not {ttl!r}")
    return LAPSE_NEVER if nanoseconds > 9.2e18 else <int64_t>nanoseconds


cdef inline int64_t lifetime_of_float(double ttl) except? -2:
    if not ttl > 0:
        raise ValueError(f"ttl must be positive, not {ttl!r}")
    if ttl * 1e9 > 9.2e18:
        return LAPSE_NEVER
    return max(<int64_t>1, <int64_t>llrint(ttl * 1e9))
