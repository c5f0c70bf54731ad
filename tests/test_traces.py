"""Trace files: every format and compression, what is guessed, and what is refused."""

import gzip
import io
import itertools
import lzma
import random
import struct
import sys
from pathlib import Path

import pytest

from lapse.traces import CHUNK_REQUESTS, FORMATS, Trace, TraceError, open_sample, open_trace

TRACES = Path(__file__).parents[1].parent / "shared" / "traces"
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="no real traces: ../shared/traces")

IDS = [0, 1, 2**31 - 1, -(2**31), 7]
INT32 = struct.pack(">5i", *IDS)
TEXTS = {
    "arc": (b"5 3 0 0\n9 1 0 1\n", [5, 6, 7, 9]),
    "lirs": (b"3\n*\n1\n*\n3\n", [3, 1, 3]),
    "timed": (b"0\t/a\n0\t/b c\n61.5\t/\xc3\xa9\n", ["/a", "/b c", "/\u00e9"]),
}


def trace_of(data, format=None, limit=None, name="memory"):
    """A trace over these bytes."""
    return Trace(io.BytesIO(data), name, format, limit)


def keys_of(trace):
    """All keys of a trace, in order."""
    with trace:
        return [key for chunk in trace for key in chunk.keys]


def refusal_of(*args, **options):
    """The message with which these bytes are refused, at once or on the way."""
    with pytest.raises(TraceError) as caught:
        keys_of(trace_of(*args, **options))
    message = str(caught.value)
    assert message.startswith("memory: ")
    assert "\n" not in message
    return message


class TestFormats:
    """Bytes become the right keys."""

    @pytest.mark.parametrize("format", TEXTS)
    def test_text_formats_are_decoded_and_guessed(self, format):
        """Each text format gives its keys, whether it is named or guessed from its first line."""
        data, keys = TEXTS[format]

        assert keys_of(trace_of(data)) == keys
        assert keys_of(trace_of(data, format)) == keys
        assert trace_of(data).format == format

    def test_int32_is_big_endian_and_signed(self):
        """Numbers of four bytes are read most significant byte first, the sign included."""
        assert keys_of(trace_of(INT32, "int32")) == IDS

    def test_timestamps_come_with_the_keys(self):
        """A timed trace carries seconds aligned with its keys; others carry none."""
        (chunk,) = trace_of(TEXTS["timed"][0])
        (untimed,) = trace_of(TEXTS["lirs"][0])

        assert chunk.times == [0.0, 0.0, 61.5]
        assert untimed.times is None
        assert trace_of(TEXTS["timed"][0]).timed
        assert not trace_of(TEXTS["lirs"][0]).timed

    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
    def test_compression_shows_in_the_content(self, pack):
        """Plain, gzip and xz data are told apart by their first bytes, not by a name."""
        assert keys_of(trace_of(pack(TEXTS["arc"][0]))) == TEXTS["arc"][1]

    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
    def test_members_in_a_row_are_one_trace(self, pack):
        """Concatenated compressed files are read to the end of the last."""
        assert keys_of(trace_of(pack(b"1\n2\n") + pack(b"3\n"))) == [1, 2, 3]

    def test_windows_line_ends_and_blank_lines_do_not_matter(self):
        """Carriage returns are no part of a key, and a last line needs no newline."""
        assert keys_of(trace_of(b"1\r\n\r\n*\r\n2")) == [1, 2]
        assert keys_of(trace_of(b"1\t/a\r\n")) == ["/a"]

    def test_paths_of_any_bytes_are_kept_apart(self):
        """Paths that are no UTF-8 stay distinct keys."""
        assert len(set(keys_of(trace_of(b"1\t/\xff\n1\t/\xfe\n")))) == 2

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("x.trace", random.Random(1).randbytes(4000)),
            ("x.TRACE", INT32),
            ("pipe", struct.pack(">100i", *range(100))),
        ],
    )
    def test_binary_ids_are_guessed(self, name, data):
        """Binary data are numbers if the name says so or their top bytes are alike."""
        assert trace_of(data, name=name).format == "int32"

    def test_a_named_format_beats_the_guess(self):
        """Text that is asked to be read as numbers is."""
        assert keys_of(trace_of(b"1\n2\n", "int32")) == [0x310A320A]


class TestStreaming:
    """A trace is never in memory as a whole."""

    def test_chunks_are_bounded_and_complete(self):
        """A long trace comes in chunks of at most CHUNK_REQUESTS, none lost at the seams."""
        count = 2 * CHUNK_REQUESTS + 5
        chunks = [chunk.keys for chunk in trace_of(struct.pack(f">{count}i", *range(count)))]

        assert [len(keys) for keys in chunks] == [CHUNK_REQUESTS, CHUNK_REQUESTS, 5]
        assert list(itertools.chain(*chunks)) == list(range(count))

    def test_a_chunk_is_given_before_the_rest_is_read(self):
        """The first chunk comes while most of the bytes have not been taken yet."""
        trace = trace_of(bytes(40 * CHUNK_REQUESTS))

        next(iter(trace))

        assert 4 * CHUNK_REQUESTS <= trace.position_bytes <= 6 * CHUNK_REQUESTS

    def test_limit_stops_early(self):
        """With a limit no more requests come, be a line worth a thousand billion of them."""
        assert keys_of(trace_of(b"7 1000000000000 0 0\n", limit=3)) == [7, 8, 9]

    def test_size_and_position_are_those_of_the_file(self, tmp_path):
        """Size and position count the compressed bytes, so that they make a progress bar."""
        path = tmp_path / "ids.gz"
        path.write_bytes(gzip.compress(b"1\n2\n"))
        with open_trace(path) as trace:
            list(trace)

            assert trace.size_bytes == trace.position_bytes == path.stat().st_size

    def test_standard_input_is_read_and_left_open(self, monkeypatch):
        """The path `-` reads standard input, of unknown size, and does not close it."""
        stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(b"1\n2\n")))
        monkeypatch.setattr(sys, "stdin", stdin)
        trace = open_trace("-")

        assert trace.size_bytes is None
        assert keys_of(trace) == [1, 2]
        assert not stdin.buffer.closed


class TestRefusals:
    """Bad input gives a TraceError with one clear line."""

    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
    def test_nothing(self, pack):
        """A trace without a byte is empty, compressed or not."""
        assert "empty" in refusal_of(pack(b""))

    def test_no_request(self):
        """A trace that holds breaks only is empty as well."""
        assert "empty" in refusal_of(b"*\n*\n")

    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
    @pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
    def test_truncated_compression(self, pack, kept):
        """Compressed data that stop before their end are called truncated."""
        packed = pack(b"".join(b"%d\n" % random.Random(i).getrandbits(30) for i in range(30_000)))

        assert "truncated" in refusal_of(packed[: int(len(packed) * kept)])

    @pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
    def test_damaged_compression(self, pack):
        """Compressed data with bytes overwritten are called damaged."""
        packed = bytearray(pack(random.Random(2).randbytes(4_000)))
        packed[1_000:1_100] = bytes(100)

        assert "damaged" in refusal_of(bytes(packed), "int32")

    def test_truncated_number(self):
        """Binary data that end inside a number are called truncated."""
        assert "truncated" in refusal_of(INT32[:-1], "int32")

    @pytest.mark.parametrize(
        ("format", "data", "line"),
        [
            ("lirs", b"1\n2\nx\n", 3),
            ("lirs", b"1 2\n", 1),
            ("arc", b"1 1 0 0\n5 1 0\n", 2),
            ("arc", b"1 0 0 0\n", 1),
            ("arc", b"1 -5 0 0\n", 1),
            ("timed", b"1\t/a\n\n2 /b\n", 3),
            ("timed", b"1\t\n", 1),
            ("timed", b"nan\t/a\n", 1),
            ("timed", b"1e300\t/a\n", 1),
            ("timed", b"-1\t/a\n", 1),
        ],
    )
    def test_malformed_line(self, format, data, line):
        """A line that is no request is named by its number."""
        assert f"line {line}:" in refusal_of(data, format)

    def test_endless_line(self):
        """A line too long for any format is refused instead of being collected."""
        assert "line 1:" in refusal_of(b"1" * 200_000, "lirs")

    @pytest.mark.parametrize(
        "data", [random.Random(3).randbytes(100_000), b"hello\nworld\n" * 1000, b"\x89PNG\r\n"]
    )
    def test_unrecognised_content(self, data):
        """Content of no known format is refused with the list of the known ones."""
        assert refusal_of(data).endswith(f"known: {', '.join(FORMATS)}")

    def test_unknown_format_name(self):
        """A format that does not exist is refused by name, with the list of the known ones."""
        message = refusal_of(INT32, "int64")

        assert "'int64'" in message
        assert all(name in message for name in FORMATS)

    def test_missing_file_and_directory(self, tmp_path):
        """What cannot be opened is a TraceError that names it."""
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(TraceError, match="cannot be read") as caught:
                open_trace(path)
            assert str(path) in str(caught.value)


class TestRealTraces:
    """The traces that this library is measured with."""

    def test_the_sample_ships_with_the_package(self):
        """web07 is in the package: 76,118 requests for 20,484 pages."""
        keys = keys_of(open_sample())

        assert (len(keys), len(set(keys))) == (76_118, 20_484)

    @needs_traces
    @pytest.mark.parametrize(
        ("file", "format", "requests", "distinct"),
        [
            ("web07.trace.xz", "int32", 76_118, 20_484),
            ("orm-night.trace.xz", "int32", 5_000_000, 86_466),
            ("arc-oltp.gz", "arc", 914_145, 186_880),
            ("zipf-1.0.gz", "lirs", 1_000_000, 1_000),
            ("weblog-2015.tsv.gz", "timed", 9_952, 1_486),
        ],
    )
    def test_requests_and_distinct_keys(self, file, format, requests, distinct):
        """Format, requests and distinct keys are the published ones."""
        count, seen = 0, set()
        with open_trace(TRACES / file) as trace:
            for chunk in trace:
                count += len(chunk.keys)
                seen.update(chunk.keys)

            assert (trace.format, count, len(seen)) == (format, requests, distinct)

    @needs_traces
    @pytest.mark.parametrize("name", ["multi1", "multi2", "sprite", "cs", "cpp"])
    def test_lirs_traces_hold_one_request_a_line(self, name):
        """A trace of the LIRS paper has as many requests as lines that are no `*`."""
        path = TRACES / f"lirs-{name}.gz"
        lines = gzip.decompress(path.read_bytes()).split()

        with open_trace(path) as trace:
            assert trace.format == "lirs"
            assert keys_of(trace) == [int(line) for line in lines if line != b"*"]
            assert 6_000 <= len(lines) <= 134_000
