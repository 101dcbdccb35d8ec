"""How classes of this package take the place of those of a stock criterion and its parts, and give it back."""

import copy
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any


class InPlace:
    """Before the stock class of an object, whose attributes it takes. A deep copy is another such; a shallow or a
    pickled one is the stock object."""

    def as_stock(self) -> Any:
        """The same, of the stock class."""
        base: Any = type(self).__bases__[1]
        stock = base.__new__(base)
        vars(stock).update(vars(self))
        return stock

    def __deepcopy__(self, memo: dict) -> "InPlace":
        copied = copy.deepcopy(self.as_stock(), memo)
        copied.__class__ = type(self)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # From protocol 2 on pickle insists that an object is pickled as one of its own class.
        return self.as_stock().__reduce_ex__(1)


@cache
def before(kind: Any, base: Any) -> Any:
    """The class of objects of a stock class that have become of this kind."""
    return type(base.__name__, (kind, base), {})


def restore(things: Iterable[Any]) -> None:
    """Gives the stock class back to what has another."""
    for each in things:
        if isinstance(each, InPlace):
            each.__class__ = type(each).__bases__[1]


def heads(stock: Any) -> list[Any]:
    """The criteria of a model's heads: an end-to-end one has two."""
    return [stock.one2many, stock.one2one] if hasattr(stock, "one2one") else [stock]


def named(thing: Any) -> str:
    """With the file of its class."""
    kind = type(thing)
    return f"{kind.__name__} of {getattr(sys.modules.get(kind.__module__), '__file__', kind.__module__)}"
