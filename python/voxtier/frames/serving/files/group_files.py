"""Open files for a user's groups: every request asks whether they may read a file, from whatever tier."""

from __future__ import annotations

from voxtier.errors import FormatError, NotFoundError, SourceError
from voxtier.frames.serving.files.open_files import GONE, OpenFile, OpenFiles, own_name
from voxtier.frames.serving.files.remote_file import RemoteFile
from voxtier.frames.serving.index.index_client import IndexClient
from voxtier.frames.sources.address import is_text
from voxtier.frames.store.groups import GroupStore
from voxtier.frames.store.store import FrameStore


class GroupFiles(OpenFiles):
    """Lends descriptors of those files alone that the index shows to some groups.

    Memory holds the tables of all readers of a process, and a file says nothing of groups: so the index is
    asked about each file. Nothing is remembered: a right that is withdrawn ends with the next request.

    Parameters
    ----------
    cap : int
        See `OpenFiles`.
    index : IndexClient
        Asks a `GroupStore`.
    source : str
        Name of the source.
    """

    def __init__(self, cap: int, index: IndexClient, source: str) -> None:
        super().__init__(cap)
        self._index = index
        self._source = source

    def take(self, path: str) -> OpenFile | RemoteFile:
        """Lend an open descriptor of a file that the groups may read.

        Raises
        ------
        NotFoundError
            They may not, or there is no such file: which of the two is not said.
        BackendError
            The index does not answer, so that nobody knows.
        """
        refusal = f"{path}: no such file, or source {self._source!r} does not show it to these groups"
        try:
            file = super().take(path)
        except SourceError as error:
            if error.errno in GONE or not self._may_read(path, None):
                raise NotFoundError(refusal) from None
            raise
        try:
            may_read = self._may_read(path, file)
        except BaseException as error:
            self.give_back(file)
            if isinstance(error, SourceError) and error.errno in GONE:  # an object is asked for here
                raise NotFoundError(refusal) from None
            raise
        if not may_read:
            self.give_back(file)
            raise NotFoundError(refusal)
        return file

    def take_open(self, path: str) -> OpenFile | RemoteFile | None:
        """Return None: the index has to be asked."""
        return None

    def _may_read(self, path: str, file: OpenFile | RemoteFile | None) -> bool:
        """Return whether a file is shown, under the name that is asked for and under its own."""
        if not is_text(path):  # no rule can name it
            return False
        try:
            instance = (file.instance() or None) if file is not None else None
        except FormatError:  # those who may read the file are told when they do
            instance = None
        names = {path}
        if isinstance(file, OpenFile):
            names.add(own_name(path, file.source))

        def question(store: FrameStore) -> bool:
            assert isinstance(store, GroupStore)
            return all(store.may_read_each(self._source, [(name, instance) for name in names]))

        return self._index.ask(question, awaits_start=True)
