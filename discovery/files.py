"""Files replaced as a whole: a reader sees the old or the new one, after a crash as well."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from discovery.errors import ApplyError


def replace(
    path: Path,
    content: str | bytes,
    *,
    mode: int = 0o644,
    owner: str | int | None = None,
    group: str | int | None = None,
) -> None:
    """Put ``content`` at ``path`` atomically. Raises ApplyError, with the old file untouched."""
    temporary: str | None = None
    try:
        data = content.encode() if isinstance(content, str) else content
        # In the same directory, for a rename is only atomic within one file system.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if owner is not None:
                shutil.chown(temporary, user=owner)
            if group is not None:
                shutil.chown(temporary, group=group)
            # After the owner, for a change of owner takes the set-id bits away.
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except (OSError, LookupError, ValueError) as error:
        # LookupError: no such user; ValueError: a lone surrogate in the text, a NUL in the path.
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise ApplyError(f"{path}: cannot be written: {error}") from error
