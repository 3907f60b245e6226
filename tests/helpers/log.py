"""What is logged during a test, for the tests that ask; pytest's own plugin listens in each of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LIGHTNING = ("lightning", "lightning.fabric", "lightning.pytorch")


class Log(logging.Handler):
    """The records that reach the root logger, or one that hands nothing on as Lightning's do, in their order.

    Attributes:
        records: of all levels that their loggers let through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """logging's hook."""
        self.records.append(record)

    @contextmanager
    def listening(self) -> Iterator["Log"]:
        loggers = [logging.getLogger(), *(log for log in map(logging.getLogger, LIGHTNING) if not log.propagate)]
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield self
        finally:
            for logger in loggers:
                logger.removeHandler(self)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        return "\n".join(self.messages)

    @contextmanager
    def at_level(self, level: int | str, logger: str | None = None) -> Iterator[None]:
        """Let records of `level` through the named logger, by default the root."""
        named = logging.getLogger(logger)
        before = named.level
        named.setLevel(level)
        try:
            yield
        finally:
            named.setLevel(before)
