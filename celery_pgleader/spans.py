"""Spans of OpenTelemetry around what the leader does; where its API is not installed, nothing at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:
    propagate = trace = None  # type: ignore[assignment]  # tells that it is not there

PREFIX = "pgleader."


@contextmanager
def span(name: str, attributes: Mapping[str, Any], *, sends: bool = False, cause: Any = None) -> Iterator[Any]:
    """Have what is done inside of the block be a span.

    Args:
        name: what is done.
        attributes: of what; their names are prefixed.
        sends: whether it sends a message.
        cause: what an earlier span gave, of which this one is a consequence; none if there was none.

    Yields:
        What to give as the cause of a later span.

    """
    if trace is None:
        yield None
        return
    kind = trace.SpanKind.PRODUCER if sends else trace.SpanKind.INTERNAL
    links = [trace.Link(cause)] if cause is not None and cause.is_valid else []
    given = {f"{PREFIX}{key}": value for key, value in attributes.items()}
    tracer = trace.get_tracer("celery_pgleader")
    with tracer.start_as_current_span(f"pgleader {name}", kind=kind, attributes=given, links=links) as begun:
        yield begun.get_span_context()


def carry(headers: MutableMapping[str, Any]) -> None:
    """Have a message's headers carry the present span, so that the task's own is part of the same trace."""
    if propagate is not None:
        propagate.inject(headers)
