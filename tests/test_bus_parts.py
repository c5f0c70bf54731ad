"""The parts of a same-host bus: the inbox, messages as datagrams, the private folder of sockets."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.distributed.datagrams import BYTES, JSON, OVERHEAD, SENDERS, TEXT, Assembler, split
from lapse.distributed.inbox import Inbox
from lapse.distributed.socket_folder import BINDING, SocketFolder
from lapse.invalidation.source import MessagesLost
from support import PATIENCE, wait_until

needs_sockets = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system"
)
TOKEN = "0123456789abcdef"

# --- The inbox ---


def test_inbox_keeps_order():
    """What is put comes out in its order, and None when nothing is there."""
    inbox = Inbox(10)
    assert [inbox.put(number) for number in range(5)] == [True] * 5
    assert len(inbox) == 5
    assert [inbox.get(0) for _ in range(6)] == [0, 1, 2, 3, 4, None]


def test_inbox_says_where_messages_are_missing():
    """What had no room is reported once, after what came before it and before what came later."""
    inbox = Inbox(2)
    assert [inbox.put(number) for number in range(5)] == [True, True, False, False, False]
    assert inbox.get(0) == 0
    assert inbox.put(5)
    assert inbox.get(0) == 1
    with pytest.raises(MessagesLost):
        inbox.get(0)
    assert [inbox.get(0), inbox.get(0)] == [5, None]
    assert (inbox.dropped, inbox.accepted) == (3, 3)


def test_inbox_holds_bytes_as_well():
    """A message that would take more bytes than there are has no room; smaller ones have."""
    inbox = Inbox(10, room=100)
    assert inbox.put("a", 60)
    assert not inbox.put("b", 60)
    assert inbox.put("c", 40)
    assert inbox.get(0) == "a"
    with pytest.raises(MessagesLost):
        inbox.get(0)
    assert inbox.put("d", 60)


def test_inbox_wakes_its_reader():
    """A reader that waits gets what is put later, and an error when the inbox is closed."""
    inbox, found = Inbox(10), []

    def read() -> None:
        found.append(inbox.get())
        try:
            inbox.get()
        except RuntimeError as error:
            found.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    inbox.put("message")
    assert wait_until(lambda: found)
    inbox.close()
    reader.join(PATIENCE)
    assert found == ["message", "the inbox is closed"]
    assert not inbox.put("more")


def test_inbox_closed_by_a_finalizer_in_the_midst_of_put():
    """It does not wait for itself; what was put just then is not handed out before the end."""
    inbox = Inbox(10)
    with inbox._short:  # as in put(), where the garbage collector may run
        inbox.close()
    with pytest.raises(RuntimeError, match="closed"):
        inbox.get(0)


def test_inbox_in_a_forked_child():
    """What waited, or was in a reader's hands, is missing for the child; else nothing is."""
    idle, waiting, read = Inbox(10), Inbox(10), Inbox(10)
    waiting.put(1)
    read.put(1)
    read.get()
    for inbox in (idle, waiting, read):
        inbox._short.acquire()  # as another thread of the parent may have
        inbox.after_fork()
    assert idle.get(0) is None
    for inbox in (waiting, read):
        with pytest.raises(MessagesLost):
            inbox.get(0)
        assert inbox.get(0) is None


def test_inbox_marks_each_loss():
    """A loss after a mark was read is marked anew, with its own reason."""
    inbox = Inbox(10)
    for reason in ("reconnected", "overflow"):
        inbox.lose(reason)
        inbox.lose("again")
        with pytest.raises(MessagesLost, match=reason):
            inbox.get(0)
        assert inbox.get(0) is None
    inbox.lose("one")
    inbox.put("message")
    inbox.lose("two")
    with pytest.raises(MessagesLost, match="one"):
        inbox.get(0)
    inbox.lose("three")
    assert inbox.get(0) == "message"
    with pytest.raises(MessagesLost, match="two"):
        inbox.get(0)
    assert inbox.get(0) is None


@pytest.mark.parametrize("capacity", [0, -1])
def test_inbox_must_hold_something(capacity):
    """An inbox without room for a message is refused."""
    with pytest.raises(ValueError, match="capacity"):
        Inbox(capacity)


# --- Datagrams ---


@given(
    st.binary(max_size=200),
    st.integers(1, 50),
    st.sampled_from([BYTES, TEXT, JSON]),
    st.integers(0, 2**64 - 1),
)
def test_a_message_in_pieces_comes_together(message, size, form, number):
    """A message of any length comes back from its datagrams, complete only with the last one."""
    assembler = Assembler(1000)
    datagrams = list(split(form, message, b"12345678", number, size))
    assert all(len(each) <= OVERHEAD + size for each in datagrams)
    answers = [assembler.add(each) for each in datagrams]
    assert answers == [None] * (len(datagrams) - 1) + [(form, message)]
    assert assembler.incomplete == 0


@given(st.data())
def test_a_message_without_all_of_its_pieces_is_lost(data):
    """If a piece is missing, comes twice or in another place, that message is lost and no other."""
    pieces = list(split(BYTES, bytes(range(60)), b"sender-1", 7, 10))
    broken = list(pieces)
    way = data.draw(st.sampled_from(["missing", "twice", "swapped"]))
    place = data.draw(st.integers(1, len(pieces) - 2))
    if way == "missing":
        del broken[place]
    elif way == "twice":
        broken.insert(place, broken[place])
    else:
        broken[place], broken[place + 1] = broken[place + 1], broken[place]
    assembler = Assembler(1000)
    assert [assembler.add(each) for each in broken] == [None] * len(broken)
    after = [assembler.add(each) for each in split(BYTES, b"x" * 20, b"sender-1", 8, 10)]
    assert after == [None, (BYTES, b"x" * 20)]


def test_senders_do_not_disturb_each_other():
    """Pieces of many senders may come in any mixture."""
    assembler = Assembler(1000)
    senders = [bytes([number]) * 8 for number in range(20)]
    streams = [list(split(TEXT, sender * 5, sender, 3, 7)) for sender in senders]
    answers = [assembler.add(each) for column in zip(*streams, strict=True) for each in column]
    assert [each for each in answers if each] == [(TEXT, sender * 5) for sender in senders]
    assert assembler.incomplete == 0


def test_a_message_is_given_up_when_the_next_one_of_its_sender_begins():
    """A sender that has begun another message will not end the last one."""
    assembler = Assembler(1000)
    first, second = (list(split(BYTES, b"x" * 20, b"sender-1", n, 10)) for n in (1, 2))
    assert [assembler.add(each) for each in [first[0], second[0], second[1]]][-1]
    assert assembler.add(first[1]) is None
    assert assembler.incomplete == 1


def test_what_waits_for_its_other_pieces_is_bounded():
    """Neither one endless message, nor many, nor many senders make the assembler grow."""
    assembler = Assembler(100)
    for index, piece in enumerate(split(BYTES, bytes(100_000), b"endless.", 1, 50)):
        assert assembler.add(piece) is None
        assert assembler._size <= 100, index
    for number in range(10 * SENDERS):
        assembler.add(next(split(BYTES, bytes(60), number.to_bytes(8, "big"), 1, 30)))
        assert assembler._size <= 400
        assert len(assembler._begun) <= SENDERS
    empty = Assembler(100)
    for number in range(10 * SENDERS):
        empty.add(next(split(BYTES, b"ab", number.to_bytes(8, "big"), 1, 1))[:OVERHEAD])
    assert len(empty._begun) <= SENDERS


@given(st.binary(max_size=100))
def test_what_is_no_datagram_comes_back_as_it_is(data):
    """Foreign bytes are given on whole, for whoever gets the messages to judge."""
    assert Assembler(1000).add(data) == (BYTES, data)


@pytest.mark.parametrize(
    ("place", "value"),
    [(3, 2), (4, ord("?")), (24, 9)],
    ids=["version", "form", "index beyond count"],
)
def test_a_header_that_is_not_understood(place, value):
    """A later version, an unknown form and an impossible index are foreign bytes, too."""
    datagram = bytearray(next(split(BYTES, b"content", b"sender-1", 1, 100)))
    datagram[place] = value
    assert Assembler(1000).add(bytes(datagram)) == (BYTES, bytes(datagram))


# --- The folder ---


@pytest.fixture
def directory() -> Iterator[str]:
    """A folder with a short path, as sockets need."""
    path = tempfile.mkdtemp(prefix="lapse-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """A datagram socket that is not bound."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        yield made


@needs_sockets
@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../up", "a b", "ümlaut", "a\0b", "a\n", None, 7]
)
def test_names_that_could_become_another_path(name, directory):
    """A name of anything but letters, digits, dash, underscore and dot is refused."""
    with pytest.raises(ValueError, match="name of a bus"):
        SocketFolder(name, directory)


@needs_sockets
def test_a_path_that_no_socket_can_have(directory):
    """A path too long for a socket is refused at once, with how much it is too long."""
    folder = SocketFolder("b", directory)
    room = 107 - len(os.fsencode(folder.path)) - len("/.4294967295-") - len(TOKEN)
    with pytest.raises(ValueError, match="bytes too long"):
        SocketFolder("b" * (room + 2), directory)


@needs_sockets
def test_the_folder_is_private(directory, sock):
    """The folder is made for this user alone, whatever the umask, and keeps only its member."""
    folder = SocketFolder("bus", directory)
    before = os.umask(0)
    try:
        identity = folder.bind(sock, TOKEN)
    finally:
        os.umask(before)
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    assert os.listdir(folder.path) == [identity] == [f"{os.getpid()}-{TOKEN}"]
    assert folder.alive() == {identity}


@needs_sockets
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_a_folder_open_to_others_is_refused(mode, directory, sock):
    """Whoever may enter could send invalidations, so such a folder is not used."""
    folder = SocketFolder("bus", directory)
    folder.path.mkdir()
    folder.path.chmod(mode)
    with pytest.raises(PermissionError, match="open to others"):
        folder.bind(sock, TOKEN)
    assert os.listdir(folder.path) == []


@needs_sockets
def test_a_link_in_the_place_of_the_folder_is_refused(directory, sock):
    """A symbolic link is not followed, whatever it leads to."""
    folder, target = SocketFolder("bus", directory), Path(directory) / "elsewhere"
    target.mkdir(mode=0o700)
    folder.path.symlink_to(target)
    with pytest.raises(PermissionError, match="not a folder"):
        folder.bind(sock, TOKEN)
    assert os.listdir(target) == []


@needs_sockets
def test_a_file_in_the_place_of_the_folder_is_refused(directory, sock):
    """A plain file is not taken for the folder."""
    folder = SocketFolder("bus", directory)
    folder.path.touch(mode=0o700)
    with pytest.raises(PermissionError, match="not a folder"):
        folder.bind(sock, TOKEN)


@needs_sockets
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root for chown")
def test_a_folder_of_another_user_is_refused(directory, sock):
    """A folder that somebody else has made in a public place is not used."""
    folder = SocketFolder("bus", directory)
    folder.path.mkdir(mode=0o700)
    os.chown(folder.path, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        folder.bind(sock, TOKEN)


@needs_sockets
def test_a_place_where_others_could_replace_the_folder(directory, sock):
    """A public place is good only if it is sticky, as /tmp is."""
    folder = SocketFolder("bus", directory)
    os.chmod(directory, 0o777)
    with pytest.raises(PermissionError, match="replace"):
        folder.bind(sock, TOKEN)
    os.chmod(directory, 0o1777)
    folder.bind(sock, TOKEN)


@needs_sockets
def test_the_directory_comes_from_the_environment(directory, monkeypatch):
    """Without a directory it is $XDG_RUNTIME_DIR, or else the folder for temporary files."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
    assert str(SocketFolder("bus").path.parent) == directory
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(SocketFolder("bus").path.parent) == os.path.abspath(tempfile.gettempdir())


@needs_sockets
def test_what_dead_members_left_is_removed(directory, sock):
    """A new member removes files without a socket, and old half-bound ones; nothing else."""
    folder = SocketFolder("bus", directory)
    for name in (f"1-{TOKEN}", f".2-{TOKEN}", f".3-{TOKEN}"):
        folder.open()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(folder.path / name))
    os.utime(folder.path / f".2-{TOKEN}", (0, os.stat(directory).st_mtime - BINDING - 10))
    (folder.path / "notes.txt").touch()
    identity = folder.bind(sock, TOKEN)
    assert set(os.listdir(folder.path)) == {identity, f".3-{TOKEN}", "notes.txt"}
    assert folder.names() == [identity]


@needs_sockets
def test_a_member_is_seen_only_once_it_listens(directory, sock, monkeypatch):
    """While its socket is being bound, nobody takes a new member for one that is dead."""
    folder, seen, rename = SocketFolder("bus", directory), [], os.rename

    def look(source: Path, target: Path) -> None:
        seen.append((folder.names(), folder.alive(), source.exists(), target.exists()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    identity = folder.bind(sock, TOKEN)
    assert seen == [([], frozenset(), True, False)]
    assert folder.alive() == {identity}


@needs_sockets
def test_a_system_without_unix_sockets(monkeypatch):
    """There the error says what to use instead."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(RuntimeError, match="KombuBroadcaster"):
        SocketFolder("bus")
