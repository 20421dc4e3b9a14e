"""Progress on stderr for what takes more than two seconds; before that, nothing."""

import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

# A terminal's line is painted anew; a log gets few lines.
_EVERY = {True: 0.5, False: 30.0}
_WIDTH = 24


class Progress:
    """A line that shows what is done, how much of it, and since when.

    A thread paints it, so that one long part, such as a compilation, shows as well.

    Args:
      label: what is being done.
      total: of how many parts; None where that is not known.
      after: seconds of silence.
      stream: None is stderr.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        after: float = 2.0,
        stream: TextIO | None = None,
    ) -> None:
        self._label, self._total, self._done = label, total, 0
        self._after, self._stream = after, sys.stderr if stream is None else stream
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._paint_until_ended, daemon=True)

    def advance(self) -> None:
        """One part is done."""
        self._done += 1

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def line(self) -> str:
        """What is shown.

        >>> bar = Progress("measuring", 4)
        >>> bar.advance()
        >>> with bar:
        ...     print(bar.line())
        measuring [######                  ] 1/4, 0 s
        """
        seconds = f"{time.monotonic() - self._start:.0f} s"
        if self._total is None:
            return f"{self._label}: {seconds}"
        full = _WIDTH * self._done // self._total
        bar = "#" * full + " " * (_WIDTH - full)
        return f"{self._label} [{bar}] {self._done}/{self._total}, {seconds}"

    def _paint_until_ended(self) -> None:
        on_terminal = self._stream.isatty()
        if self._ended.wait(self._after):
            return
        before, end = ("\r", "") if on_terminal else ("", "\n")
        while True:
            print(before + self.line(), end=end, file=self._stream, flush=True)
            if self._ended.wait(_EVERY[on_terminal]):
                break
        if on_terminal:
            print(file=self._stream, flush=True)
