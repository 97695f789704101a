"""Files over SFTP, plural: what is asked of many files is asked at once, and all wait together.

Functions take a session and what the Transport's methods take. Where a file fails, its failure is raised when
those that were under way with it are done.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from grange.farm import sftp
from grange.farm.errors import RemoteFull, RemoteMissing, TransportFailed
from grange.farm.sftp import Answer, Request, SftpSession
from grange.farm.transport import Entry
from grange.farm.whole_file import WholeFile, part_name, sync_folders

Item = TypeVar("Item")

#: Files that are open at once; OpenSSH's server takes some thousand handles, others fewer.
GROUP = 64
#: Reads of one folder that are under way at once; a server sends about 100 names for each.
_READS_OF_A_FOLDER = 4


# ---------------------------------------------------------------- sending


@dataclass(slots=True)
class _Sent:
    """A file on its way there."""

    source: Path | bytes
    path: str
    part: str
    handle: bytes = b""
    refused: tuple[str, Answer] | None = None


def put(session: SftpSession, computer: str, files: Sequence[tuple[Path | bytes, str]], mode: int) -> None:
    """Send files, each whole or not at all; its content is on the disk there if the server can see to it."""
    for group in _groups(files):
        # What cannot be read here is the caller's mistake: known before anything is sent.
        for source, _ in group:
            if isinstance(source, Path):
                os.close(os.open(source, os.O_RDONLY | os.O_CLOEXEC))
        sent = [_Sent(source, path, _beside(path)) for source, path in group]
        _open_parts(session, computer, sent, mode)
        opened = [file for file in sent if file.handle]
        for file, answer in session.exchange(_content(session, opened, mode)):
            if answer.status not in (sftp.OK, sftp.UNSUPPORTED) and file.refused is None:
                file.refused = ("write", answer)
        _rename(session, [file for file in opened if file.refused is None])
        refused = [file for file in sent if file.refused is not None]
        session.ask([sftp.remove_file(file.part) for file in refused if file.handle])
        for file in refused:
            assert file.refused is not None
            raise _refusal_to_write(session, computer, file.path, *file.refused)


def _beside(path: str) -> str:
    return posixpath.join(posixpath.dirname(path), part_name())


def _open_parts(session: SftpSession, computer: str, files: Sequence[_Sent], mode: int) -> None:
    """Open the files' temporary names; folders that are missing are made, and those opened again."""
    flags = sftp.FOR_WRITING | sftp.CREATE | sftp.EXCLUSIVE

    def attempt(files: Sequence[_Sent]) -> None:
        answers = session.ask([sftp.open_file(file.part, flags, mode) for file in files])
        for file, answer in zip(files, answers, strict=True):
            file.refused = None
            if answer.status == sftp.OK:
                file.handle = answer.handle
            else:
                file.refused = ("write", answer)

    attempt(files)
    homeless = [
        file for file in files if file.refused is not None and file.refused[1].status == sftp.NO_SUCH_FILE
    ]
    if homeless:
        make_folders(session, computer, sorted({posixpath.dirname(file.path) for file in homeless}), 0o700)
        attempt(homeless)


def _content(session: SftpSession, files: Sequence[_Sent], mode: int) -> Iterator[tuple[_Sent, Request]]:
    for file in files:
        for offset, block in _blocks(file.source, session.write_bytes):
            if file.refused is not None:
                break  # the answer to an earlier block
            yield file, sftp.write_at(file.handle, offset, block)
        if mode & 0o077:
            yield file, sftp.set_mode(file.handle, mode)  # whatever the umask there took away
        if "fsync@openssh.com" in session.extensions:
            yield file, sftp.sync_handle(file.handle)
        yield file, sftp.close_handle(file.handle)


def _blocks(source: Path | bytes, size: int) -> Iterator[tuple[int, bytes | memoryview]]:
    if isinstance(source, bytes):
        for offset in range(0, len(source), size):
            yield offset, memoryview(source)[offset : offset + size]
        return
    offset = 0
    with open(source, "rb", buffering=0) as file:
        while block := file.read(size):
            yield offset, block
            offset += len(block)


def _rename(session: SftpSession, files: Sequence[_Sent]) -> None:
    over = "posix-rename@openssh.com" in session.extensions
    if not over:  # then there is a moment without the file
        session.ask([sftp.remove_file(file.path) for file in files])
    move = sftp.rename_over if over else sftp.rename
    answers = session.ask([move(file.part, file.path) for file in files])
    for file, answer in zip(files, answers, strict=True):
        if answer.status != sftp.OK:
            file.refused = ("rename", answer)


# ---------------------------------------------------------------- fetching


class Sink(Protocol):
    """Takes the bytes of one file, in any order."""

    def write_at(self, data: bytes | memoryview, offset: int) -> None: ...


@dataclass(slots=True)
class _Memory:
    """A sink that is a bytes object in the end."""

    parts: dict[int, bytes] = field(default_factory=dict)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        self.parts[offset] = bytes(data)

    def content(self) -> bytes:
        return b"".join(self.parts[offset] for offset in sorted(self.parts))


def get(session: SftpSession, computer: str, files: Sequence[tuple[str, Path]]) -> None:
    """Fetch files, each whole or not at all, on our disk when this returns. Errors: RemoteMissing."""
    folders = {target.parent for _, target in files}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for group in _groups(files):
        targets: dict[int, WholeFile] = {}

        def sink(
            at: int, group: Sequence[tuple[str, Path]] = group, targets: dict[int, WholeFile] = targets
        ) -> Sink:
            targets[at] = WholeFile(group[at][1])
            return targets[at]

        try:
            answers = _fetch(session, [path for path, _ in group], sink)
            for at, answer in enumerate(answers):
                if answer is None:
                    targets[at].commit()
        finally:
            for target in targets.values():
                target.abandon()
        for (path, _), answer in zip(group, answers, strict=True):
            if answer is not None:
                raise _refusal_to_read(computer, path, answer)
    sync_folders(folders)


def read(session: SftpSession, computer: str, paths: Sequence[str]) -> list[bytes | None]:
    """The contents of small files; None for those that are not there."""
    contents: list[bytes | None] = []
    for group in _groups(paths):
        sinks = [_Memory() for _ in group]
        answers = _fetch(session, group, sinks.__getitem__)
        for path, sink, answer in zip(group, sinks, answers, strict=True):
            if answer is None:
                contents.append(sink.content())
            elif answer.status == sftp.NO_SUCH_FILE or _is_below_a_file(session, path):
                contents.append(None)
            else:
                raise _refusal_to_read(computer, path, answer)
    return contents


@dataclass(slots=True)
class _Fetched:
    """A file on its way here."""

    handle: bytes
    sink: Sink
    size: int = 0
    first: int = 0
    ended: bool = False
    refused: Answer | None = None


def _fetch(session: SftpSession, paths: Sequence[str], sink: Callable[[int], Sink]) -> list[Answer | None]:
    """Read files into sinks, made for those that can be opened; what the server says of the others."""
    answers = session.ask([sftp.open_file(path, sftp.FOR_READING) for path in paths])
    files = {
        at: _Fetched(answer.handle, sink(at)) for at, answer in enumerate(answers) if answer.status == sftp.OK
    }
    _read_beginnings(session, list(files.values()))
    again: deque[tuple[_Fetched, int, int]] = deque()
    for (file, offset, length), answer in session.exchange(_reads(session, list(files.values()), again)):
        if answer.status == sftp.END:
            file.ended = True  # it is shorter than it was
        elif answer.status != sftp.OK:
            file.refused = file.refused or answer
        elif not file.ended:
            data = answer.data
            file.sink.write_at(data, offset)
            if len(data) < length:
                again.append((file, offset + len(data), length - len(data)))
    # A read that was short and answered last of all has nobody to send it again.
    while again:
        file, offset, length = again.popleft()
        answer = session.ask([sftp.read_at(file.handle, offset, length)])[0]
        if answer.status not in (sftp.OK, sftp.END):
            file.refused = file.refused or answer
        elif data := answer.data:
            file.sink.write_at(data, offset)
            if len(data) < length:
                again.append((file, offset + len(data), length - len(data)))
    session.ask([sftp.close_handle(file.handle) for file in files.values()])
    return [files[at].refused if at in files else answer for at, answer in enumerate(answers)]


def _read_beginnings(session: SftpSession, files: Sequence[_Fetched]) -> None:
    """The size of files, and as much of each as one read gives: small ones are done then."""
    requests = []
    for file in files:
        requests += [sftp.stat_handle(file.handle), sftp.read_at(file.handle, 0, session.read_bytes)]
    answers = session.ask(requests)
    for file, told, answer in zip(files, answers[::2], answers[1::2], strict=True):
        if answer.status not in (sftp.OK, sftp.END):
            file.refused = answer
        elif told.status != sftp.OK:
            file.refused = told
        else:
            file.sink.write_at(answer.data, 0)
            file.size, file.first = told.attributes.size, len(answer.data)


def _reads(
    session: SftpSession, files: Sequence[_Fetched], again: deque[tuple[_Fetched, int, int]]
) -> Iterator[tuple[tuple[_Fetched, int, int], Request]]:
    for file in files:
        for offset in range(file.first, file.size, session.read_bytes):
            if file.refused is not None:
                break
            while again:
                short = again.popleft()
                yield short, sftp.read_at(short[0].handle, short[1], short[2])
            length = min(session.read_bytes, file.size - offset)
            yield (file, offset, length), sftp.read_at(file.handle, offset, length)


# ---------------------------------------------------------------- folders


def list_folders(session: SftpSession, computer: str, folders: Sequence[str]) -> list[list[Entry] | None]:
    """What lies in folders, by name; None for those that are not there. Links are followed."""
    found: list[list[Entry] | None] = []
    for group in _groups(folders):
        for folder, names in zip(group, _names(session, group), strict=True):
            if isinstance(names, Answer):
                if names.status != sftp.NO_SUCH_FILE:
                    raise TransportFailed(computer, f"cannot list {folder}: {_words(names)}")
                found.append(None)
                continue
            links = {name for name, attributes in names.items() if attributes.is_link}
            ends = session.ask([sftp.stat_path(posixpath.join(folder, name)) for name in links])
            for name, end in zip(links, ends, strict=True):
                if end.status == sftp.OK:  # else it leads nowhere, and is what is there
                    names[name] = end.attributes
            found.append(
                [
                    Entry(name, attributes.size, attributes.mtime, attributes.is_folder, name in links)
                    for name, attributes in sorted(names.items())
                ]
            )
    return found


def _names(session: SftpSession, folders: Sequence[str]) -> list[dict[str, sftp.Attributes] | Answer]:
    """The names in folders with what the server tells of them, or why there are none."""
    opened = session.ask([sftp.open_folder(folder) for folder in folders])
    found: list[dict[str, sftp.Attributes] | Answer] = [
        {} if answer.status == sftp.OK else answer for answer in opened
    ]
    reading = [at for at, answer in enumerate(opened) if answer.status == sftp.OK]
    handles = {at: opened[at].handle for at in reading}
    while reading:
        ended = set()
        requests = ((at, sftp.read_folder(handles[at])) for at in reading for _ in range(_READS_OF_A_FOLDER))
        for at, answer in session.exchange(requests):
            names = found[at]
            if answer.status != sftp.OK:
                ended.add(at)
                if answer.status != sftp.END:
                    found[at] = answer
            elif isinstance(names, dict):
                names.update((name, kept) for name, kept in answer.names if name not in (".", ".."))
        reading = [at for at in reading if at not in ended]
    session.ask([sftp.close_handle(handle) for handle in handles.values()])
    return found


def make_folders(session: SftpSession, computer: str, paths: Sequence[str], mode: int) -> None:
    """Make folders, and what is missing above them (0700)."""
    wanted = set(paths)
    above = {parent for path in wanted for parent in _ancestors(path)}
    everything = sorted(wanted | above, key=lambda path: (path.count("/"), path))
    answers = session.ask([sftp.stat_path(path) for path in everything])
    missing = []
    for path, answer in zip(everything, answers, strict=True):
        if answer.status == sftp.OK and not answer.attributes.is_folder:
            raise TransportFailed(computer, f"cannot make {path}: there is a file in its place")
        if answer.status != sftp.OK:
            missing.append(path)
    refused: dict[str, Answer] = {}
    while missing:
        depth = missing[0].count("/")
        level = [path for path in missing if path.count("/") == depth]
        del missing[: len(level)]
        answers = session.ask([sftp.make_folder(path, mode if path in wanted else 0o700) for path in level])
        refused |= {
            path: answer for path, answer in zip(level, answers, strict=True) if answer.status != sftp.OK
        }
        if mode & 0o077:  # whatever the umask there took away
            made = [path for path in level if path in wanted and path not in refused]
            session.ask([sftp.set_path_mode(path, mode) for path in made])
    if refused:
        _forgive_folders(session, computer, refused)


def _forgive_folders(session: SftpSession, computer: str, refused: dict[str, Answer]) -> None:
    """Folders that were there after all, made by somebody else meanwhile, are as good."""
    answers = session.ask([sftp.stat_path(path) for path in refused])
    for (path, refusal), answer in zip(refused.items(), answers, strict=True):
        if answer.status != sftp.OK:
            raise _refusal_to_write(session, computer, path, "make", refusal)
        if not answer.attributes.is_folder:
            raise TransportFailed(computer, f"cannot make {path}: there is a file in its place")


def remove(session: SftpSession, computer: str, paths: Sequence[str]) -> None:
    """Remove files, and folders with all below them; links are removed, not followed."""
    answers = session.ask([sftp.stat_link(path) for path in paths])
    files: list[str] = []
    level: list[str] = []
    for path, answer in zip(paths, answers, strict=True):
        if answer.status == sftp.OK:
            (level if answer.attributes.is_folder else files).append(path)
        elif answer.status != sftp.NO_SUCH_FILE and not _is_below_a_file(session, path):
            raise _refusal_to_write(session, computer, path, "remove", answer)
    folders: list[str] = []
    while level:
        folders += level
        below: list[str] = []
        for group in _groups(level):
            for folder, names in zip(group, _names(session, group), strict=True):
                if isinstance(names, Answer):
                    if names.status == sftp.NO_SUCH_FILE:
                        continue
                    raise _refusal_to_write(session, computer, folder, "remove", names)
                for name, attributes in names.items():
                    (below if attributes.is_folder else files).append(posixpath.join(folder, name))
        level = below
    _must_go(session, computer, files, sftp.remove_file)
    _must_go(session, computer, list(reversed(folders)), sftp.remove_folder)  # what is deepest first


def _must_go(
    session: SftpSession, computer: str, paths: Sequence[str], request: Callable[[str], Request]
) -> None:
    answers = session.exchange((path, request(path)) for path in paths)
    refused = [each for each in answers if each[1].status not in (sftp.OK, sftp.NO_SUCH_FILE)]
    for path, answer in refused:
        raise _refusal_to_write(session, computer, path, "remove", answer)


def home(session: SftpSession, computer: str) -> str:
    """Where the session begins: our home folder."""
    answer = session.ask([sftp.real_path(".")])[0]
    if answer.status != sftp.OK:
        raise TransportFailed(computer, f"does not tell our home folder: {_words(answer)}")
    return answer.names[0][0]


# ---------------------------------------------------------------- refusals


def _refusal_to_read(computer: str, path: str, answer: Answer) -> TransportFailed:
    if answer.status == sftp.NO_SUCH_FILE:
        return RemoteMissing(computer, f"{path} is not there")
    return TransportFailed(computer, f"cannot read {path}: {_words(answer)}")


def _refusal_to_write(
    session: SftpSession, computer: str, path: str, action: str, answer: Answer
) -> TransportFailed:
    """What a refusal means. The protocol has one word, failure, for a full disk and a folder in the way."""
    reason = f"cannot {action} {path}: {_words(answer)}"
    if answer.status == sftp.PERMISSION_DENIED:
        return RemoteFull(computer, f"{reason}; it is not ours to write there: see who owns it and its mode")
    parent = posixpath.dirname(path) or "/"
    with contextlib.suppress(TransportFailed):
        own, above = session.ask([sftp.stat_path(path), sftp.stat_path(parent)])
        if above.status == sftp.OK and not above.attributes.is_folder:
            return TransportFailed(computer, f"cannot {action} {path}: {parent} is no folder")
        if own.status == sftp.OK and own.attributes.is_folder and action in ("write", "rename"):
            return TransportFailed(computer, f"cannot write {path}: there is a folder in its place")
        if answer.status == sftp.FAILURE and action != "remove":
            return RemoteFull(
                computer,
                f"{reason}: no space is left, a quota is used up, or it is mounted read-only; make room "
                "there, then do the same again",
            )
    return TransportFailed(computer, reason)


def _words(answer: Answer) -> str:
    return answer.text or f"the server answers with status {answer.status}"


def _is_below_a_file(session: SftpSession, path: str) -> bool:
    """Whether a path leads through a file: then there is nothing, for which the protocol has no own word."""
    answers = session.ask([sftp.stat_path(parent) for parent in _ancestors(path)])
    return any(answer.status == sftp.OK and not answer.attributes.is_folder for answer in answers)


def _ancestors(path: str) -> list[str]:
    found = []
    while (parent := posixpath.dirname(path)) not in ("", "/", path):
        found.append(parent)
        path = parent
    return found


def _groups(items: Sequence[Item]) -> Iterable[Sequence[Item]]:
    return (items[at : at + GROUP] for at in range(0, len(items), GROUP))
