"""Files that are whole or not there: everything is written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write a file or a folder to, which replaces `path` if no error occurs."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-"))
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error}. Choose a path that you may write to.") from error
        temporary = Path(folder) / path.name
        yield temporary
        if path.is_dir():
            # A folder can't be replaced in one step. The old one moves into the temporary folder, which is removed.
            path.rename(Path(folder) / "replaced")
        os.replace(temporary, path)


def check_target(path: Path, overwrite: bool) -> None:
    """Raises a ValueError if a path exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another path, or overwrite it (overwrite=True, --overwrite).")


#: Beginning of the names of folders in which files are written.
WRITING = ".writing-"


@contextlib.contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[Path]:
    """Yields a temporary path to write a file to, which replaces `path` once it is synchronised to the disk.

    Args:
        path: Path of the file. Its folder is created if necessary.
        size: Bytes to reserve on the disk first, for libraries that crash when the disk is full.

    Raises:
        OSError: If the file cannot be written. `path` is unchanged then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=WRITING) as folder:
            temporary = Path(folder) / path.name
            if size and hasattr(os, "posix_fallocate"):
                with tempfile.TemporaryFile(dir=folder) as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}). What was written before is intact: the same command resumes from it."
        ) from error


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


def write_digest(path: Path) -> None:
    """Writes a file's SHA-256 beside it, as `sha256sum --check` reads it."""
    with replacing(_digest_file(path)) as temporary:
        temporary.write_text(f"{sha256(path)}  {path.name}\n", encoding="utf-8")


def remove_digest(path: Path) -> None:
    """Removes the SHA-256 beside a file, before that is written anew."""
    _digest_file(path).unlink(missing_ok=True)


def check_digest(path: Path) -> None:
    """Raises a ValueError if a file does not have the SHA-256 that is written beside it, if there is one."""
    try:
        expected = _digest_file(path).read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return
    if sha256(path) != expected:
        raise ValueError(
            f"{path} is damaged, or was replaced: its SHA-256 is not that in {_digest_file(path).name}. "
            "Remove that file if the replacement is meant."
        )


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
