"""Files of data sets."""

import tarfile
from pathlib import Path


def there(path: Path) -> Path:
    """A file of a data set, or what is missing."""
    if not path.exists():
        raise SystemExit(
            f"expected the data set's file {path}, found none; pass with --data the "
            f"folder that holds {path.parent.name}/"
        )
    return path


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of a file in an archive."""
    file = archive.extractfile(name)
    if file is None:
        raise SystemExit(f"expected the file {name} in {archive.name}, got a folder")
    return file.read()
