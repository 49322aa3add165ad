"""Let Beam remember what it works out again for every step of every pipeline.

For a pipeline of a few rows, most of Beam's time goes into signatures of the same methods and parsers of the
same options. Both are pure, so a test sees no difference but the time, and hundreds run such pipelines.
"""

from __future__ import annotations

import types
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core


def remember() -> None:
    """Remember arguments of methods and views of options until the process ends."""
    arguments_of, view_as = core.get_function_args_defaults, PipelineOptions.view_as
    known: dict[types.FunctionType, tuple[list[str], list[Any]]] = {}
    views: dict[tuple[int, type], tuple[dict[str, Any], PipelineOptions]] = {}

    def remembered_arguments(function: Any) -> tuple[list[str], list[Any]]:
        if not isinstance(function, types.MethodType):
            return arguments_of(function)  # type: ignore[no-any-return]
        if function.__func__ not in known:
            known[function.__func__] = arguments_of(function)
        names, defaults = known[function.__func__]
        return [*names], [*defaults]

    def remembered_view(self: PipelineOptions, cls: type[PipelineOptions]) -> PipelineOptions:
        # All views of options share one dictionary of values. It is kept here, so that no other gets its id.
        key = id(self._all_options), cls
        if key not in views:
            views[key] = self._all_options, view_as(self, cls)
        return views[key][1]

    core.get_function_args_defaults = remembered_arguments
    PipelineOptions.view_as = remembered_view
