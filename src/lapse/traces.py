"""Access traces, read as a stream: the keys that some program asked of a cache, in order.

A trace is a file or a pipe, plain or compressed with gzip or xz, in one of the `FORMATS`.
It is decoded chunk by chunk; no more than one chunk is ever in memory.
"""

from __future__ import annotations

__all__ = ["FORMATS", "Chunk", "Format", "Key", "Trace", "TraceError", "open_sample", "open_trace"]

import gzip
import io
import lzma
import os
import re
import stat
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Key = int | str

CHUNK_REQUESTS = 65_536
SAMPLE = "web07.trace.xz"

_BLOCK_BYTES = 65_536
_LONGEST_LINE_BYTES = 65_536
_LATEST_SECONDS = 2e9  # what ManualClock moves by in one step, with some room
_GZIP_MAGIC = b"\x1f\x8b"
_XZ_MAGIC = b"\xfd7zXZ\x00"


class TraceError(ValueError):
    """A trace that cannot be read: missing, empty, truncated, damaged or of no known format."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive requests: their keys and, if the trace has timestamps, their times in seconds."""

    keys: list[Key]
    times: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """How bytes become requests: keys, or pairs of seconds and key where `timed`."""

    description: str
    decode: Callable[[io.BufferedReader], Iterator[Iterable[Any]]]
    timed: bool = False


class Trace:
    """One pass over a trace, as an iterator of `Chunk`; close it, or use it in a `with` block.

    Iteration raises TraceError where the data end too early, are damaged or hold no request.
    """

    def __init__(
        self,
        source: IO[bytes],
        name: str,
        format: str | None = None,
        limit: int | None = None,
        *,
        close_source: bool = True,
    ) -> None:
        """Look at the first bytes of `source`.

        Args:
            source: Where the bytes come from.
            name: What messages call it, and what helps to guess the format.
            format: A name out of `FORMATS`; None guesses.
            limit: The number of requests to stop after; None reads them all.
            close_source: Whether the trace closes `source`, now if there is no trace in it.

        Raises:
            TraceError: The format is unknown or cannot be guessed, or there is nothing to read.
        """
        self.name = name
        #: Bytes of the source, compressed as they lie; None for a pipe.
        self.size_bytes = _size_bytes(source)
        self._close = source.close if close_source else None
        self._limit = limit
        self._counted = _Counted(source)
        try:
            with _reported(name):
                self._stream = _decompressed(self._counted)
                #: The name of the format, given or guessed.
                self.format = _format_name(format, name, self._stream.peek())
        except TraceError:
            self.close()
            raise

    @property
    def timed(self) -> bool:
        """Whether the requests carry timestamps."""
        return FORMATS[self.format].timed

    @property
    def position_bytes(self) -> int:
        """Bytes of the source taken so far, out of `size_bytes`."""
        return self._counted.taken

    def __iter__(self) -> Iterator[Chunk]:
        with _reported(self.name):
            decoded = chain.from_iterable(FORMATS[self.format].decode(self._stream))
            requests = islice(decoded, self._limit)
            chunk = None
            while batch := list(islice(requests, CHUNK_REQUESTS)):
                chunk = _timed_chunk(batch) if self.timed else Chunk(batch)
                yield chunk
            if chunk is None:
                raise ValueError("empty: there is no request in it")

    def close(self) -> None:
        """Close the source, unless it was only lent."""
        if self._close:
            self._close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_trace(
    path: str | os.PathLike[str], format: str | None = None, limit: int | None = None
) -> Trace:
    """Open the trace at `path`, or the one on standard input where `path` is `-`.

    Raises:
        TraceError: It cannot be opened, or as `Trace` does.
    """
    if path == "-":
        return Trace(sys.stdin.buffer, "standard input", format, limit, close_source=False)
    name = os.fsencode(path).decode("utf-8", "replace")
    with _reported(name):
        source = open(path, "rb")  # noqa: SIM115 (the trace closes it)
    return Trace(source, name, format, limit)


def open_sample(format: str | None = None, limit: int | None = None) -> Trace:
    """Open the trace that comes with the package: a web shop's product pages, one day in July.

    Raises:
        TraceError: As `Trace` does, for a format that is not the sample's.
    """
    source = (resources.files("lapse") / "data" / SAMPLE).open("rb")
    return Trace(source, SAMPLE, format, limit)


# --- Formats ---


def _decode_int32(stream: io.BufferedReader) -> Iterator[Iterable[int]]:
    """Big-endian signed 32-bit numbers, block by block."""
    left_over = b""
    while block := stream.read(_BLOCK_BYTES):
        block = left_over + block
        whole = len(block) // 4 * 4
        left_over = block[whole:]
        numbers = array("i", block[:whole])
        if sys.byteorder == "little":
            numbers.byteswap()
        yield numbers
    if left_over:
        raise ValueError(f"truncated: it ends after {len(left_over)} of the 4 bytes of a number")


def _lines_of(
    parse: Callable[[bytes], Iterable[Any]],
) -> Callable[[io.BufferedReader], Iterator[Iterable[Any]]]:
    """A decoder of text, where `parse` turns one line into its requests or raises ValueError."""

    def decode(stream: io.BufferedReader) -> Iterator[Iterable[Any]]:
        number = 0
        # A bounded readline: a file of a single endless line must not fill the memory.
        while line := stream.readline(_LONGEST_LINE_BYTES):
            number += 1
            if line.isspace():
                continue
            try:
                requests = parse(line.rstrip(b"\r\n"))
            except ValueError as error:
                shown = ascii(line[:40].decode("utf-8", "replace").strip())[:42]
                raise ValueError(f"line {number}: {error}, found {shown}") from None
            yield requests

    return decode


def _parse_lirs(line: bytes) -> Iterable[int]:
    """One integer, or `*` for a break between phases, which is no request."""
    if line.strip() == b"*":
        return ()
    try:
        return (int(line),)
    except ValueError:
        raise ValueError("expected one integer or *") from None


def _parse_arc(line: bytes) -> Iterable[int]:
    """`start count flags request`: a request for each of start .. start + count - 1."""
    try:
        start, count, _flags, _request = map(int, line.split())
    except ValueError:
        raise ValueError("expected four integers: start count flags request") from None
    if count < 1:
        raise ValueError("expected a count of at least 1")
    return range(start, start + count)


def _parse_timed(line: bytes) -> Iterable[tuple[float, str]]:
    """`seconds TAB path`: one request for the path at that time."""
    seconds, _tab, path = line.partition(b"\t")
    try:
        time = float(seconds)
    except ValueError:
        time = -1.0
    if not (0 <= time < _LATEST_SECONDS and path):
        raise ValueError("expected seconds, a tab and a path")
    return ((time, path.decode("utf-8", "surrogateescape")),)


def _timed_chunk(batch: list[tuple[float, str]]) -> Chunk:
    """The chunk of these pairs of seconds and key."""
    times, keys = zip(*batch, strict=True)
    return Chunk(list(keys), list(times))


#: Every format by the name that `open_trace` takes.
FORMATS: dict[str, Format] = {
    "arc": Format("`start count flags request` a line, expanded", _lines_of(_parse_arc)),
    "int32": Format("big-endian 32-bit numbers", _decode_int32),
    "lirs": Format("one integer a line, `*` is a break", _lines_of(_parse_lirs)),
    "timed": Format("`seconds TAB path` a line", _lines_of(_parse_timed), timed=True),
}

_FIRST_LINES = {
    "arc": re.compile(rb"\d+(\s+\d+){3}\s*"),
    "lirs": re.compile(rb"(-?\d+|\*)\s*"),
    "timed": re.compile(rb"\d+(\.\d*)?\t.+", re.DOTALL),
}


def _format_name(given: str | None, name: str, head: bytes) -> str:
    """The name of the format: `given` if there is such a one, else guessed from name and head."""
    known = ", ".join(FORMATS)
    if given is not None and given not in FORMATS:
        raise ValueError(f"unknown trace format {given!r}; known: {known}")
    if not head:
        raise ValueError("empty: there is no request in it")
    guess = given or _guess(name, head)
    if guess is None:
        raise ValueError(f"its format is not recognised; known: {known}")
    return guess


def _guess(name: str, head: bytes) -> str | None:
    """The format that content shows, or failing that the name; None if neither does."""
    first_line = head.lstrip(b"\r\n").partition(b"\n")[0]
    for format, pattern in _FIRST_LINES.items():
        if pattern.fullmatch(first_line):
            return format
    stem = name.lower().removesuffix(".gz").removesuffix(".xz")
    return "int32" if stem.endswith((".trace", ".int32")) or _looks_like_ids(head) else None


def _looks_like_ids(head: bytes) -> bool:
    """Whether bytes are plausibly big-endian identifiers: they share a few top bytes.

    Text has no zero byte, and the top bytes of other binary data are scattered.
    """
    top_bytes = set(head[::4])
    return b"\0" in head and len(top_bytes) <= min(16, len(head) // 32)


# --- Bytes ---


class _Counted(io.RawIOBase):
    """The bytes of a source, counted as they are taken."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        block = self._source.read(memoryview(buffer).nbytes)
        memoryview(buffer)[: len(block)] = block
        self.taken += len(block)
        return len(block)


def _decompressed(source: _Counted) -> io.BufferedReader:
    """The plain bytes of `source`, whose first bytes say how it is compressed."""
    stream: io.BufferedReader = io.BufferedReader(source, _BLOCK_BYTES)
    magic = stream.peek()
    if magic.startswith(_GZIP_MAGIC):
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), _BLOCK_BYTES)
    if magic.startswith(_XZ_MAGIC):
        return io.BufferedReader(lzma.LZMAFile(stream), _BLOCK_BYTES)
    return stream


def _size_bytes(source: IO[bytes]) -> int | None:
    """The size of a regular file in bytes, None for anything else."""
    try:
        status = os.fstat(source.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turns whatever reading raises into a TraceError of one line that names the trace."""
    try:
        yield
    except TraceError:
        raise
    except EOFError:
        raise TraceError(f"{name}: truncated: the compressed data stop before their end") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise TraceError(f"{name}: damaged: {error}") from None
    except OSError as error:
        raise TraceError(f"{name}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise TraceError(f"{name}: {error}") from None
