"""When a lease is live, and when its holder must stop.

One lease belongs to one worker process, and all runs it holds live and die with it. The two
sides count differently on purpose. The server compares wall time it wrote itself. The worker
trusts its own stopwatch only, counted from when the beat that was answered was *sent*, and stops
`LEASE_MARGIN_MS` early: the server's count starts later than that, so by the time a run may be
given to somebody else its old holder has stopped (rulings §2.6).
"""

from __future__ import annotations

from everturn.rules import limits


def renewed_until(now_ms: int) -> int:
    """The end of a lease that is granted or renewed now."""
    return now_ms + limits.LEASE_MS


def is_live(lease_until_ms: int, now_ms: int) -> bool:
    """Whether the server still counts the holder of this lease as alive."""
    return now_ms < lease_until_ms


def trusted_until(sent_at_s: float) -> float:
    """Until when, by its own stopwatch in seconds, a worker may work on an answered beat."""
    return sent_at_s + (limits.LEASE_MS - limits.LEASE_MARGIN_MS) / 1000


def start_overdue_before(now_ms: int) -> int:
    """Runs claimed before this time and still not confirmed are queued again."""
    return now_ms - limits.START_MS_MAX
