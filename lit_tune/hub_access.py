"""The Hugging Face Hub, before it is first asked: does anybody answer?

Its client waits 23 s over five attempts and tells of each; a machine without a network knows after a moment.
"""

import logging
import os
import socket
import threading
from functools import cache
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging

log = logging.getLogger("lit_tune")
TIMEOUT_SECONDS = 5.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def is_reachable() -> bool:
    """Whether the Hub may be asked; where nobody answers, its client is switched to what is cached here.

    Quiets the client. The answer is kept for the process.
    """
    hub_logging.set_verbosity_error()
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return True  # the proxy answers for it
    if answers(constants.ENDPOINT):
        return True
    log.warning("%s does not answer: only what is cached on this machine can be used", constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = True
    return False


@cache
def answers(address: str, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether something accepts a connection.

    Args:
        address: ``https://host[:port]``.
        timeout: Seconds for name and connection together.
    """
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    found: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname or "", port), timeout):
                found.append(True)
        except OSError:
            pass

    # looking up a name knows no time limit
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(timeout)
    return bool(found)
