"""Objects in a bucket, through obstore: S3, GCS, Azure, or its own memory store.

A bucket's answer to a put is its promise of durability, and a put there is atomic, so there is
nothing to add but the translation of errors.
"""

from __future__ import annotations

from obstore.exceptions import BaseError
from obstore.store import ObjectStore as Bucket

from everturn.errors import Unavailable
from everturn.storage.objects.names import checked_name


class BucketObjects:
    """The port of objects over one bucket (or one prefix of it)."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def put(self, name: str, data: bytes) -> None:
        """Store; the bucket has made it durable when this returns. Raises Unavailable."""
        try:
            await self._bucket.put_async(checked_name(name), data)
        except BaseError as error:
            raise Unavailable(f"the object {name!r} was not stored: {error}") from error

    async def get(self, name: str) -> bytes | None:
        """The stored bytes, None when there are none. Raises Unavailable."""
        try:
            found = await self._bucket.get_async(checked_name(name))
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise Unavailable(f"the object {name!r} was not read: {error}") from error

    async def delete(self, name: str) -> None:
        """Forget; no error when there is nothing. Raises Unavailable."""
        try:
            await self._bucket.delete_async(checked_name(name))
        except FileNotFoundError:
            return
        except BaseError as error:
            raise Unavailable(f"the object {name!r} was not deleted: {error}") from error
