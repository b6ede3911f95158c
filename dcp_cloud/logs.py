"""Logs without secrets, for jobs that log at DEBUG.

This package writes no credential to any log. The SDKs do, at DEBUG: botocore logs header fields with session tokens,
signatures and customer keys, and the answers of token services. A filter on the handler takes them out::

    for handler in logging.getLogger().handlers:
        handler.addFilter(SecretFilter())
"""

from __future__ import annotations

import logging
import traceback

from dcp_cloud.errors import redact


class SecretFilter(logging.Filter):
    """Replaces credentials and signatures in log records, tracebacks included.

    It belongs on handlers: a filter on a logger does not see the records of the loggers below it. What a secret looks
    like is known from the SDKs' texts, by the names before the values; a bare value it cannot know.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record in place.

        Args:
            record: The record.

        Returns:
            True: nothing is dropped.
        """
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info is not None and record.exc_info[1] is not None:
            lines = traceback.format_exception(record.exc_info[1])
            record.exc_text = redact("".join(lines).rstrip("\n"))
        return True
