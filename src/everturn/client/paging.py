"""Lists that the server gives out in pages (wire-protocol §9.6): runs and sessions alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

ItemT = TypeVar("ItemT")


class Page(msgspec.Struct, Generic[ItemT], frozen=True, kw_only=True):
    """One page of a list, newest first; `next` and `previous` are cursors or None."""

    items: tuple[ItemT, ...]
    next: str | None = None
    previous: str | None = None


class Listing(Generic[ItemT]):
    """Newest first: iterate all items, or go page by page with `pages()`, or take one `page()`.

    Nothing is asked for before the first item is. Iterating again asks again.

    Args:
        fetch: asks the server for the page that a query names.
        read: makes an item of what the server tells of one.
        query: the filters, in wire spelling.
    """

    def __init__(
        self,
        fetch: Callable[[Mapping[str, str]], Awaitable[Mapping[str, Any]]],
        read: Callable[[Mapping[str, Any]], ItemT],
        query: Mapping[str, str],
    ) -> None:
        self._fetch = fetch
        self._read = read
        self._query = dict(query)

    async def page(self) -> Page[ItemT]:
        """The first page."""
        return await self._page(self._query)

    async def pages(self) -> AsyncIterator[Page[ItemT]]:
        """Page after page; the next one is asked for when the one before is used up."""
        query = self._query
        while True:
            page = await self._page(query)
            yield page
            if page.next is None:
                return
            query = {**self._query, "page[after]": page.next}

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def _page(self, query: Mapping[str, str]) -> Page[ItemT]:
        body = await self._fetch(query)
        pagination = body.get("pagination") or {}
        return Page(
            items=tuple(self._read(item) for item in body.get("data", ())),
            next=pagination.get("next"),
            previous=pagination.get("previous"),
        )
