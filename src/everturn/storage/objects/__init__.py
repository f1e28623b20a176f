"""Snapshots and other large objects: on this machine's disk by default, in any bucket by URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from everturn.errors import ConfigurationError
from everturn.storage.objects.files import FileObjects
from everturn.storage.ports.snapshots import ObjectStore


def open_objects(url_or_path: str | Path) -> ObjectStore:
    """The store of objects that a setting names.

    Args:
        url_or_path: a folder, `file:///folder`, `memory:///`, or a bucket (`s3://bucket/prefix`,
            `gs://…`, `az://…`). Credentials of buckets come from their usual environment
            variables, as obstore reads them.

    Raises:
        ConfigurationError: the URL is of no kind that is known here.
    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return FileObjects(Path(url_or_path))
    parts = urlsplit(url_or_path)
    if parts.scheme == "file":
        return FileObjects(Path(unquote(parts.path)))
    # Imported late: the embedded default keeps files and need not load the bucket library.
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    from everturn.storage.objects.buckets import BucketObjects

    try:
        return BucketObjects(from_url(url_or_path))
    except (BaseError, ValueError) as error:
        where = f"{parts.scheme}://{parts.hostname or ''}"
        # The library repeats the URL, which may hold a secret.
        why = str(error).partition("\n")[0].replace(url_or_path, where)
        raise ConfigurationError(f"no object store can be opened at {where}: {why}") from error
