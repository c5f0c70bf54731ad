"""The `lapse` command: what it prints, and how it fails."""

import gzip
import io
import json
import lzma
import os
import random
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import lapse
from lapse import bench
from lapse.cli import main
from lapse.commands import app
from lapse.traces import FORMATS

LAPSE = [sys.executable, "-m", "lapse.cli"]


@pytest.fixture(autouse=True)
def plain_output(monkeypatch):
    """No terminal, whatever the surroundings say, here and in the processes that a test starts."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def weblog(tmp_path):
    """A short trace with timestamps: two hits by a ttl of 60 s."""
    path = tmp_path / "log.tsv"
    path.write_text("0\t/a\n59\t/a\n60\t/a\n61\t/b\n62\t/a\n")
    return path


def failure_of(capsys, *arguments):
    """The one line with which the command fails; the status is 2 and nothing is printed."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("lapse: ")
    assert err.count("\n") == 1
    return err


class TestReplay:
    """`lapse replay` prints a table, and writes JSON where asked."""

    def test_sample(self):
        """The sample needs no file: its size, and a row for each contender."""
        result = CliRunner().invoke(app, ["replay", "--sample"])

        assert result.exit_code == 0
        assert "76,118 requests for 20,484 distinct keys" in result.stdout
        for name in ("lapse ttl", "dict", "lru_cache"):
            (row,) = [line for line in result.stdout.splitlines() if line.startswith(f" {name} ")]
            assert "73.09" in row

    def test_units_are_in_the_headings(self, capsys):
        """The table says what is counted in what."""
        main(["replay", "--sample", "--limit", "1000"])

        lines = capsys.readouterr().out.splitlines()
        assert lines[2].split()[:4] == ["cache", "requests", "hits", "expired"]
        assert lines[3].split() == ["/s", "%", "entries", "ns", "ns", "ns", "KiB"]

    def test_table_fits_eighty_columns(self, capsys, weblog):
        """The widest contender and its figures are never cut."""
        main(["replay", str(weblog), "--cache", "probabilistic"])

        rows = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:9]
        assert any("lapse probabilistic" in row for row in rows)
        assert all(len(row) <= 80 and "\u2026" not in row for row in rows)

    @pytest.mark.parametrize(("cache", "hits"), [("ttl", 2), ("sliding", 3)])
    def test_json(self, tmp_path, weblog, cache, hits):
        """The figures are written as JSON with the settings that made them."""
        file = tmp_path / "out.json"

        status = main(["replay", str(weblog), "--cache", cache, "--ttl", "60", "--json", str(file)])

        report = json.loads(file.read_text())
        assert status == 0
        assert (report["requests"], report["distinct_keys"], report["span_seconds"]) == (5, 2, 62)
        assert (report["cache"], report["ttl_seconds"]) == (cache, 60)
        assert report["results"][0]["name"] == f"lapse {cache}"
        assert report["results"][0]["hits"] == hits

    def test_standard_input(self, monkeypatch, capsys):
        """The trace `-` comes from standard input, here compressed."""
        stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(b"1\n2\n1\n")))
        monkeypatch.setattr(sys, "stdin", stdin)

        assert main(["replay", "-"]) == 0
        assert "standard input: 3 requests for 2 distinct keys" in capsys.readouterr().out

    def test_limit(self, capsys, weblog):
        """A limit ends the replay early."""
        assert main(["replay", str(weblog), "--limit", "2"]) == 0
        assert ": 2 requests for 1 distinct keys" in capsys.readouterr().out

    def test_named_format(self, capsys, tmp_path):
        """A format that is named is used instead of a guess."""
        path = tmp_path / "digits"
        path.write_bytes(b"1\n2\n1\n2\n")

        assert main(["replay", str(path), "--format", "int32"]) == 0
        assert "2 requests for 1 distinct keys (int32" in capsys.readouterr().out

    def test_progress_stays_off_standard_output(self):
        """Where standard error is no terminal, nothing but the report is written."""
        result = subprocess.run(
            [*LAPSE, "replay", "--sample"], capture_output=True, text=True, timeout=60
        )

        assert (result.returncode, result.stderr) == (0, "")
        assert "\x1b" not in result.stdout

    def test_progress_on_a_terminal(self, monkeypatch, capsys):
        """On a terminal a bar on standard error shows what is being replayed."""
        monkeypatch.setenv("FORCE_COLOR", "1")

        assert main(["replay", "--sample"]) == 0
        out, err = capsys.readouterr()
        assert "replaying web07.trace.xz" in err
        assert "replaying" not in out


class TestBadInput:
    """Bad input gives one line on standard error and status 2."""

    def test_missing_file(self, capsys, tmp_path):
        """A file that does not exist is named."""
        assert "No such file" in failure_of(capsys, "replay", tmp_path / "missing")

    def test_directory(self, capsys, tmp_path):
        """A directory is no trace."""
        assert str(tmp_path) in failure_of(capsys, "replay", tmp_path)

    @pytest.mark.parametrize("data", [b"", gzip.compress(b""), lzma.compress(b"")])
    def test_empty_file(self, capsys, tmp_path, data):
        """A file without a request is called empty."""
        path = tmp_path / "empty"
        path.write_bytes(data)

        assert "empty" in failure_of(capsys, "replay", path)

    @pytest.mark.parametrize("kept", [20, 5_000, -1])
    def test_truncated_xz(self, capsys, tmp_path, kept):
        """An .xz file that was cut is called truncated, however late the cut shows."""
        path = tmp_path / "cut.trace.xz"
        path.write_bytes(lzma.compress(random.Random(1).randbytes(400_000))[:kept])

        assert "truncated" in failure_of(capsys, "replay", path)

    def test_garbage(self, capsys, tmp_path):
        """Noise is refused with the list of formats."""
        path = tmp_path / "noise.bin"
        path.write_bytes(random.Random(2).randbytes(50_000))

        assert ", ".join(FORMATS) in failure_of(capsys, "replay", path)

    def test_unknown_names(self, capsys):
        """An unknown cache or format is answered with the known ones."""
        known = "ttl, sliding, probabilistic"
        assert known in failure_of(capsys, "replay", "--sample", "--cache", "lfu")
        assert ", ".join(FORMATS) in failure_of(capsys, "replay", "--sample", "--format", "csv")

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["replay"], "--sample"),
            (["replay", "x", "--sample"], "--sample"),
            (["replay", "--sample", "--ttl", "0"], "0"),
            (["replay", "--sample", "--ttl", "nan"], "nan"),
            (["replay", "--sample", "--ttl", "soon"], "--ttl"),
            (["replay", "--sample", "--limit", "0"], "--limit"),
            (["replay", "--fast"], "--fast"),
            (["race"], "race"),
        ],
    )
    def test_wrong_arguments(self, capsys, arguments, named):
        """Arguments that make no sense are named in the complaint."""
        assert named in failure_of(capsys, *arguments)

    def test_json_cannot_be_written(self, capsys, tmp_path):
        """A file that cannot be written is named after the table has been printed."""
        file = tmp_path / "no" / "out.json"

        assert main(["replay", "--sample", "--limit", "100", "--json", str(file)]) == 2
        assert str(file) in capsys.readouterr().err

    def test_process(self, tmp_path):
        """A real process fails the same way: status 2, one line, no traceback."""
        path = tmp_path / "cut.xz"
        path.write_bytes(lzma.compress(b"1\n2\n" * 100_000)[:-20])

        result = subprocess.run(
            [*LAPSE, "replay", "-"],
            input=path.read_bytes(),
            capture_output=True,
            timeout=60,
        )

        assert result.returncode == 2
        assert result.stdout == b""
        assert result.stderr.startswith(b"lapse: standard input: truncated")
        assert result.stderr.count(b"\n") == 1


class TestProcess:
    """How the command ends when somebody ends it, and what it needs."""

    def test_reader_goes_away(self):
        """When nobody reads the output any more, the command ends without a word."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            result = subprocess.run(
                [*LAPSE, "replay", "--sample"],
                stdout=writer,
                stderr=subprocess.PIPE,
                timeout=60,
            )
        finally:
            os.close(writer)

        assert (result.returncode, result.stderr) == (1, b"")

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process on Windows")
    def test_interrupt(self):
        """Ctrl-C while waiting for input ends with status 130 and not a word."""
        with subprocess.Popen(
            [sys.executable, "-c", WAITING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=60)

        assert (process.returncode, err) == (130, b"")

    @pytest.mark.parametrize("package", ["typer", "rich"])
    def test_missing_extra(self, package):
        """Without typer or rich the command says what to install."""
        script = f"import sys; sys.modules[{package!r}] = None; from lapse.cli import main; "
        result = subprocess.run(
            [sys.executable, "-c", script + "sys.exit(main())"],
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert result.returncode == 2
        assert "pip install 'lapse[cli]'" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_a_bug_is_not_hidden(self, monkeypatch):
        """An exception that is no complaint about input comes through."""
        monkeypatch.setattr("lapse.commands.open_sample", lambda *_: 1 / 0)

        with pytest.raises(ZeroDivisionError):
            main(["replay", "--sample"])


# Says so when the trace is about to be read: a signal must not come while modules are imported.
WAITING = """
import sys
from lapse import cli, traces
def announce(source):
    print("ready", flush=True)
traces._size_bytes = announce
sys.exit(cli.main(["replay", "-"]))
"""


class TestOtherCommands:
    """`lapse --version`, `lapse` alone, and `lapse bench`."""

    def test_version(self):
        """The version is the package's."""
        result = CliRunner().invoke(app, ["--version"])

        assert (result.exit_code, result.stdout) == (0, f"lapse {lapse.__version__}\n")

    def test_help(self, capsys):
        """Without a command the commands are listed."""
        assert main([]) == 0
        out = capsys.readouterr().out
        assert "replay" in out
        assert "bench" in out
        assert "demo" in out

    def test_bench_hands_its_options_over(self, monkeypatch, tmp_path):
        """`lapse bench` passes its options on, and its status is the benchmark's."""
        seen = {}
        monkeypatch.setattr(bench, "run", lambda **options: seen.update(options) or 1)
        json_path, svg_path = tmp_path / "b.json", tmp_path / "b.svg"

        files = ["--json", str(json_path), "--svg", str(svg_path)]
        status = main(["bench", "--rounds", "3", "--quick", "--only", "get", "--targets", *files])

        assert status == 1
        assert seen == {
            "rounds": 3,
            "quick": True,
            "only": "get",
            "targets": True,
            "json_path": json_path,
            "svg_path": svg_path,
        }
