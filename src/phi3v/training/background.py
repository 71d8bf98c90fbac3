"""One thread that writes while the steps of a run go on."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)


class BackgroundWriter:
    """Does one piece of work at a time in a thread of its own.

    Python ends only when the thread has: work under way is finished, unless the process is killed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, once the one before it is done.

        Raises:
            OSError: The work before has failed; likewise what else it raised.
        """
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise what has made the work fail, without waiting for work under way."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the work is done.

        Raises:
            OSError: It has failed; likewise what else it raised. An error is raised once.
        """
        if self._work is not None:
            self._work.exception()
            # Taken off only now: a wait that Ctrl-C breaks off leaves the work to the next one.
            work, self._work = self._work, None
            work.result()

    def close(self) -> None:
        """Wait, and end the thread; an error that nobody has met yet is logged."""
        try:
            self.wait()
        except Exception as error:
            logger.error("%s", error)
        finally:
            self._thread.shutdown()
