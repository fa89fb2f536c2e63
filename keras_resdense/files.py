"""Files that are whole or not there: everything is written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Beginning of the names of folders in which files are written.
WRITING = ".writing-"


@contextlib.contextmanager
def staged(path: Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary path to write a file or a folder to, which replaces `path` once it is on the disk.

    Args:
        path: Path of the file or folder. Its parents are created if necessary.
        size: Bytes to reserve on the disk first, for libraries that crash when the disk is full.

    Raises:
        OSError: If it cannot be written. `path` is unchanged then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=WRITING) as folder:
            temporary = Path(folder) / path.name
            if size and hasattr(os, "posix_fallocate"):
                with tempfile.TemporaryFile(dir=folder) as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            yield temporary
            for written in _files(temporary):
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
            if path.is_dir():
                # A folder can't be replaced in one step. The old one moves into the temporary folder, which is removed.
                path.rename(Path(folder) / "replaced")
            os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}). What was there before is unchanged. Make room, or choose a path that "
            "you may write to; the same command resumes a run."
        ) from error


def keras_home() -> Path:
    """Returns Keras's folder for downloads."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 as `staged` does."""
    with staged(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in (path, *path.rglob("*")) if file.is_file())


def check_target(path: Path, overwrite: bool) -> None:
    """Raises a ValueError if a path exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another path, or overwrite it (overwrite=True, --overwrite).")


def remove_leftovers(folder: Path) -> None:
    """Removes files that killed processes left half-written, anywhere in a folder."""
    for leftover in list(folder.rglob(f"{WRITING}*")):
        shutil.rmtree(leftover)


@contextlib.contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Keeps other processes from writing to a folder.

    Raises:
        ValueError: If another process writes there; it says `refusal`.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        except OSError:
            pass  # Not every file system has locks.
        yield
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    return digest_of(path, "sha256")


def digest_of(path: Path, algorithm: str) -> str:
    """Returns the digest of a file by an algorithm of `hashlib`, in hexadecimal digits."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digests(path: Path) -> dict[str, str]:
    """Maps the path of each file of a file or folder, relative to the folder it is in, to its SHA-256."""
    return {file.relative_to(path.parent).as_posix(): sha256(file) for file in _files(path)}


def description_of(path: Path) -> Path:
    """Returns the path of an artefact's description, which holds its measurements and digests."""
    return path.with_name(f"{path.name}.json")


def write_digest(path: Path) -> None:
    """Writes a file's SHA-256 beside it, as `sha256sum --check` reads it."""
    write_text(_digest_file(path), f"{sha256(path)}  {path.name}\n")


def remove_digest(path: Path) -> None:
    """Removes the SHA-256 beside a file, before the file is written again."""
    _digest_file(path).unlink(missing_ok=True)


def check_digests(path: Path, found: Mapping[str, str] | None = None) -> None:
    """Raises a ValueError if the SHA-256 recorded beside a file or folder differ from those that it has.

    Args:
        path: The file or folder. `{path}.sha256` and `{path}.json` may record digests. Nothing is checked without them.
        found: Its `digests`, if they are known already.
    """
    for record in _records(path):
        expected = _recorded(record, path.name)
        if expected is None or not path.exists():
            continue
        found = found or digests(path)
        if found != expected:
            raise ValueError(
                f"{path} is damaged, or was replaced: its SHA-256 is not that in {record.name}. "
                "Write it again, or remove that file if the replacement is intended."
            )


def has_digests(path: Path) -> bool:
    """Returns whether SHA-256 are recorded beside a file or folder."""
    return any(_recorded(record, path.name) for record in _records(path))


def _records(path: Path) -> tuple[Path, Path]:
    return _digest_file(path), description_of(path)


def _recorded(record: Path, name: str) -> Mapping[str, str] | None:
    try:
        text = record.read_text(encoding="utf-8")
        return json.loads(text)["sha256"] if record.suffix == ".json" else {name: text.split()[0]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        # Records are optional, and descriptions of earlier versions have no digests.
        return None


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
