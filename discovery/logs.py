"""What the process logs: one line an event on stderr, as key=value text or JSON."""

import logging
import sys
import warnings
from typing import Literal

import structlog


def configure(level: Literal["debug", "info", "warning", "error"], format_: Literal["text", "json"]) -> None:
    """Set up logging for the whole process; call once, before threads start."""
    # Libraries' own logs are dropped: what matters of theirs is raised, and logged by us once.
    logging.getLogger().addHandler(logging.NullHandler())
    # watchdog adds a new directory twice when it comes with another below it, which does no harm, and then
    # warns with the names of all directories.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, "watchdog")
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format_ == "json"
        else structlog.processors.LogfmtRenderer(key_order=["time", "level", "event"], bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
