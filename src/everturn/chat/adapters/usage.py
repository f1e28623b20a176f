"""What a model run cost, in the fields of chat-agent §8.2."""

from __future__ import annotations

from typing import Any

import msgspec


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Input tokens by where they came from; None where the provider does not say."""

    no_cache: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None


class OutputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Output tokens by kind; None where the provider does not say."""

    text: int | None = None
    reasoning: int | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer, or of several added together.

    Adding takes a missing number as 0, and keeps None when both are missing. What the model
    library counted itself (an author returned one of its own streams) may be added as it is.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_token_details: InputTokens = InputTokens()
    output_token_details: OutputTokens = OutputTokens()

    def __add__(self, other: Any) -> Usage:
        if other is None:
            return self
        if not isinstance(other, Usage):
            if not hasattr(other, "cache_read_tokens"):
                return NotImplemented
            other = usage_of_run(other)
        mine, yours = self.input_token_details, other.input_token_details
        made, more = self.output_token_details, other.output_token_details
        return Usage(
            input_tokens=_sum(self.input_tokens, other.input_tokens),
            output_tokens=_sum(self.output_tokens, other.output_tokens),
            total_tokens=_sum(self.total_tokens, other.total_tokens),
            input_token_details=InputTokens(
                no_cache=_sum(mine.no_cache, yours.no_cache),
                cache_read=_sum(mine.cache_read, yours.cache_read),
                cache_write=_sum(mine.cache_write, yours.cache_write),
            ),
            output_token_details=OutputTokens(
                text=_sum(made.text, more.text), reasoning=_sum(made.reasoning, more.reasoning)
            ),
        )

    __radd__ = __add__


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None and b is None else (a or 0) + (b or 0)


def usage_of_run(usage: Any) -> Usage:
    """pydantic-ai's `RunUsage` in our fields. It counts 0 where a provider says nothing."""
    cache_read, cache_write = usage.cache_read_tokens, usage.cache_write_tokens
    reasoning = usage.details.get("reasoning_tokens")
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        input_token_details=InputTokens(
            no_cache=max(0, usage.input_tokens - cache_read - cache_write),
            cache_read=cache_read,
            cache_write=cache_write,
        ),
        output_token_details=OutputTokens(
            text=None if reasoning is None else max(0, usage.output_tokens - reasoning),
            reasoning=reasoning,
        ),
    )
