"""Files on a full disk, or without memory: every write fails once, the first, then the second, and so on."""

import errno

from jax_maddness.core import atomic

ERRORS = (OSError(errno.ENOSPC, "No space left on device", "hidden"), MemoryError())


class FailingFile:
    """A file whose method `name` fails at its call number `at`; counts the calls."""

    def __init__(self, file, name, at, error):
        self.file, self.name, self.at, self.error, self.calls = file, name, at, error, 0

    def __getattr__(self, name):
        if name != self.name:
            return getattr(self.file, name)
        return self._called

    def _called(self, *args):
        self.calls += 1
        if self.calls == self.at:
            if args:
                self.file.write(args[0][: len(args[0]) // 2])  # a full disk takes a part
            raise self.error
        return getattr(self.file, self.name)(*args)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


def check_failures(path, write, monkeypatch, error, name):
    """Calls `write(path)` with one failing call of the file's method `name` after the other, until none is left.

    The file at `path` must stay as it was, and alone in its folder. Returns how many calls failed.
    """
    before, failures = path.read_bytes(), 0
    while True:
        files = []

        def opened(*args, at=failures + 1, files=files):
            files.append(FailingFile(open(*args), name, at, error))  # noqa: SIM115 -- the caller closes it
            return files[0]

        monkeypatch.setattr(atomic, "open", opened, raising=False)
        try:
            write(path)
        except (OSError, MemoryError) as raised:
            assert type(raised) is type(error)  # noqa: PT017 -- the last of all calls succeeds
            text = f"[Errno {errno.ENOSPC}] No space left on device: {str(path)!r}"
            assert str(raised) in (text, "")  # noqa: PT017
        else:
            assert failures == files[0].calls
            return failures
        finally:
            monkeypatch.undo()
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        failures += 1
