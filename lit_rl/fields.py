"""Fields: tensors that a container declares once, in its class body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor


class Field:
    """Declaration of a tensor, which itself lies in the instance under the same name.

    Args:
        required: whether the constructor must be given the tensor.
        default: instance -> tensor, if none was given; None leaves the field unfilled.
    """

    def __init__(self, required: bool, default: Callable[[Any], Tensor] | None) -> None:
        self.required, self.default = required, default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    # Without `__set__` beside it, Python calls this only if the instance holds no such tensor.
    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__} have no {self.name} yet: nothing has filled the field.")


def field(required: bool = False, default: Callable[[Any], Tensor] | None = None) -> Any:
    """A `Field` to a reader, any value to a type checker, so that the annotation beside it is believed."""
    return Field(required, default)


def fields_of(container: type) -> dict[str, Field]:
    """Fields of a class and its bases by name, in the order of declaration."""
    # `vars` and not `getattr`, which on the class would call `__get__`, and that raises. Bases first: a subclass overrides.
    declared = [vars(base).items() for base in reversed(container.__mro__)]
    return {name: value for items in declared for name, value in items if isinstance(value, Field)}
