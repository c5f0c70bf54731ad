"""Keys of calls: how the arguments of a function become one key.

    def f(a)                                  a
    def f(a, b=2, *rest, c=3, **more)         (a, b, *rest, c, frozenset(more.items()))

    in front, if functions share a cache      the function's name
    instead of the instance of a method       its id(): the key does not keep it alive
    behind, if types count                    the types of all that stands before

So calls that mean the same have the same key, whether an argument is given by position, by keyword
or not at all. Such an expression is compiled as the body of a function that has the very parameters
of the cached one: the interpreter binds the arguments, and complains as it would for the cached
function. The native call of a Memo (_fast.h) makes the same keys by a plan, without that function,
as long as no argument comes by keyword.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from inspect import Parameter
from types import CodeType, FunctionType
from typing import Any

__all__ = ["LONE_ALWAYS", "LONE_NEVER", "LONE_PLAIN", "NO_PLAN", "Parameters", "Plan"]

#: Is a lone argument its own key? The same numbers stand in _fast.h.
LONE_NEVER, LONE_PLAIN, LONE_ALWAYS = range(3)

#: What Memo._open() wants: the fewest arguments, those that have names, the most, what a call of
#: the fewest leaves out, and whether a lone one is its own key.
Plan = tuple[int, int, int, tuple[Any, ...], int]
NO_PLAN: Plan = (1, 0, 0, (), LONE_NEVER)

BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
EMPTY = Parameter.empty


class Parameters:
    """The parameters of `function`, or `(*args, **kwargs)` if it does not tell them, or `opaque`.

    What a wrapper made by functools.wraps() takes is what counts, not what it passes on.
    """

    def __init__(self, function: Callable[..., Any], *, opaque: bool = False) -> None:
        try:
            found = inspect.signature(_anything if opaque else function, follow_wrapped=False)
        except ValueError:
            found = inspect.signature(_anything)
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self._all = list(found.parameters.values())

    def _of(self, *kinds: Any) -> list[Parameter]:
        return [parameter for parameter in self._all if parameter.kind in kinds]

    def is_lone(self) -> bool:
        """Is there one parameter, for one argument?"""
        return len(self._all) == 1 and self._all[0].kind in BY_POSITION

    def take_instance(self) -> bool:
        """Is there a parameter for the instance of a method?"""
        return bool(self._all) and self._all[0].kind in (*BY_POSITION, Parameter.VAR_POSITIONAL)

    def key(self, *, prefixed: bool, typed: bool, bound: bool) -> str:
        """The expression of a key. A lone argument that is its own is a name alone."""
        if self.is_lone() and not (prefixed or typed or bound):
            return self._all[0].name
        parts = [_part(parameter, typed) for parameter in self._all]
        if bound:
            parts[0] = _bound_part(self._all[0])
        if prefixed:
            parts.insert(0, "_lapse_prefix")
        return f"_lapse_typed({_tuple(parts)})" if typed else _tuple(parts)

    def call(self) -> tuple[str, str]:
        """The expressions of a tuple and a dict that hand all arguments on."""
        given = [p.name for p in self._of(*BY_POSITION)]
        given += [f"*{p.name}" for p in self._of(Parameter.VAR_POSITIONAL)]
        named = [f"{p.name!r}: {p.name}" for p in self._of(Parameter.KEYWORD_ONLY)]
        named += [f"**{p.name}" for p in self._of(Parameter.VAR_KEYWORD)]
        return _tuple(given), f"{{{', '.join(named)}}}"

    def plan(self, *, prefixed: bool, typed: bool, bound: bool) -> Plan:
        """How the native call makes the same keys as key()."""
        by_position, by_name = self._of(*BY_POSITION), self._of(Parameter.KEYWORD_ONLY)
        if any(p.default is EMPTY for p in by_name):
            return NO_PLAN
        left_out = [p.default for p in by_position if p.default is not EMPTY]
        named, least = len(by_position), len(by_position) - len(left_out)
        most = sys.maxsize if self._of(Parameter.VAR_POSITIONAL) else named
        left_out += [p.default for p in by_name]
        left_out += [frozenset() for _ in self._of(Parameter.VAR_KEYWORD)]
        lone = self.is_lone() and not (prefixed or typed or bound)
        return least, named, most, tuple(left_out), LONE_ALWAYS if lone else LONE_NEVER

    def compiled(self, body: str, names: dict[str, Any], *, awaits: bool = False) -> FunctionType:
        """A function with these parameters and their defaults; a coroutine function if it `awaits`.

        `names` are the global names in `body`; no parameter begins with `_lapse_` as they do.
        """
        defaults = {
            p.name: Verbatim(f"_lapse_defaults[{p.name!r}]")
            for p in self._all
            if p.default is not EMPTY
        }
        bare = [p.replace(default=defaults.get(p.name, EMPTY), annotation=EMPTY) for p in self._all]
        head = f"{'async ' * awaits}def _lapse_made{inspect.Signature(bare)}:"
        module = compile(f"{head}\n{body}", f"<lapse: {self.name}>", "exec")
        name = self.name.rpartition(".")[2]
        consts = tuple(
            c.replace(co_name=name) if isinstance(c, CodeType) else c for c in module.co_consts
        )
        namespace = HELPERS | names | {"_lapse_defaults": {p.name: p.default for p in self._all}}
        exec(module.replace(co_consts=consts), namespace)
        made: FunctionType = namespace["_lapse_made"]
        made.__name__, made.__qualname__ = name, self.name
        return made


class Verbatim(str):
    """A text whose repr() is itself."""

    __slots__ = ()
    __repr__ = str.__str__


def _tuple(parts: list[str]) -> str:
    return f"({', '.join(parts)}{',' * (len(parts) == 1)})"


def _part(parameter: Parameter, typed: bool) -> str:
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.kind is Parameter.VAR_KEYWORD:
        return f"_lapse_frozen{'_typed' * typed}({parameter.name})"
    return parameter.name


def _bound_part(parameter: Parameter) -> str:
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return f"*_lapse_by_id({parameter.name})"
    return f"_lapse_id({parameter.name})"


def _anything(*args: Any, **kwargs: Any) -> None:
    """Takes anything."""


def _frozen(kwargs: dict[str, Any]) -> frozenset[Any]:
    return frozenset(kwargs.items())


def _frozen_typed(kwargs: dict[str, Any]) -> frozenset[Any]:
    return frozenset((name, value, type(value)) for name, value in kwargs.items())


def _typed(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return key + tuple(map(type, key))


def _by_id(args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args:
        raise TypeError("a method was called without its instance")
    return id(args[0]), *args[1:]


#: The names that the expression of a key may use.
HELPERS = {
    "_lapse_by_id": _by_id,
    "_lapse_frozen": _frozen,
    "_lapse_frozen_typed": _frozen_typed,
    "_lapse_id": id,
    "_lapse_typed": _typed,
}
