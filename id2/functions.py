"""A function of `id2`: typed, with the options of its request as keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from id2.options import Request, options_of, signature_of
from id2core.errors import OptionError
from id2core.runs.progress import tally

P = ParamSpec("P")
R = TypeVar("R", bound=Request)
T = TypeVar("T")


class Function(Generic[P, T]):
    """Takes the options of a request as keyword arguments, and gives a typed result.

    Attributes:
        name: of the function, its command, and its flow.
        request: the model of its options.
        results: names of the models that it returns, in `id2.results`.
    """

    def __init__(self, request: type[Request], work: Callable[[Request], T]) -> None:
        self.name = work.__name__.replace("_", "-")
        self.request = request
        # Annotations stay text: naming a result loads nothing.
        self.results: list[str] = [
            name for name in work.__annotations__["return"].split(" | ") if name != "None"
        ]
        self.__name__, self.__module__ = work.__name__, work.__module__
        self.__doc__ = _document(request)
        self.__signature__ = signature_of(request)
        self._work = work

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Build the request from options, check it, and run it.

        Raises:
            OptionError: an option is missing, unknown, or out of bounds.
            ID2Error: the work cannot be done; the message says what to do.
        """
        if args:
            raise OptionError(
                f"id2.{self.__name__} takes options by name: id2.{self.__name__}({_first(self.request)}=…)"
            )
        request = self.request(**kwargs)
        request.check()
        return self.run(request)

    def run(self, request: Request) -> T:
        """Run a request whose checks have passed."""
        if request.progress is None:
            return self._work(request)
        stop = tally.listen(request.progress)
        try:
            return self._work(request)
        finally:
            stop()


def function(request: Callable[P, R]) -> Callable[[Callable[[R], T]], Function[P, T]]:
    """Make a function that takes a request one that takes the request's options."""

    def decorate(work: Callable[[R], T]) -> Function[P, T]:
        return Function(request, work)  # type: ignore[arg-type]

    return decorate


def _first(request: type[Request]) -> str:
    return next(name for name, _ in options_of(request))


def _document(request: type[Request]) -> str:
    """The request's docstring, and each option with its help."""
    lines = [f"    {name}: {field.description}" for name, field in options_of(request)]
    return "\n".join([inspect.cleandoc(request.__doc__ or ""), "", "Args:", *lines])
