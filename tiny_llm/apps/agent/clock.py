"""Tell the time, add days to a date, and count the days between dates."""

import datetime
from collections.abc import Callable

from tiny_llm.apps.agent.tools import ToolError

Now = Callable[[], datetime.datetime]


def tell_time(date: str | None, days: int | None, until: str | None, now: Now) -> str:
    """Return "Friday 2026-03-06 14:05" without arguments, a date with its weekday, or "45 days" with `until`."""
    if date is None and days is None and until is None:
        return f"{now():%A %Y-%m-%d %H:%M}"
    start = now().date() if date is None else date_of(date)
    try:
        start += datetime.timedelta(days=days or 0)
    except OverflowError:
        raise ToolError(f"{days} days lead out of the calendar") from None
    if until is None:
        return f"{start:%A %Y-%m-%d}"
    count = (date_of(until) - start).days
    return f"{count} days"


def date_of(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ToolError(f"not a date: {text}") from None
