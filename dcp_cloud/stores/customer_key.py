"""A customer's own key, as S3 and Azure take it."""

from __future__ import annotations

from collections.abc import Callable

from dcp_cloud.errors import ConfigError, DcpCloudError

_KEY_BYTES = 32  # AES-256


def read_customer_key(factory: Callable[[], bytes]) -> bytes:
    """Ask for the key.

    Args:
        factory: The setting ``customer_key``.

    Returns:
        Its 32 bytes.

    Raises:
        ConfigError: The function failed, or gave something else.
    """
    try:
        key: object = factory()
    except DcpCloudError:
        raise
    except Exception as error:
        raise ConfigError(
            "customer_key failed", cause=type(error).__name__, hint="call it yourself to see why"
        ) from error
    if not isinstance(key, bytes | bytearray | memoryview):
        raise ConfigError(f"customer_key gave a {type(key).__name__}", hint="it must give a 32-byte AES-256 key")
    key = bytes(key)
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"customer_key gave {len(key)} bytes", hint="it must give a 32-byte AES-256 key")
    return key
