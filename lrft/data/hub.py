"""Whether the hub can be reached, asked once, so that a machine without network is told so at once."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from urllib.parse import urlparse

from lrft.core.notes import say

PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@cache
def offline_if_unreachable(timeout: float = 3.0) -> bool:
    """Switch the hub libraries to their offline mode when the hub does not answer; says whether it did.

    They would otherwise retry each file for half a minute. Behind a proxy nothing is concluded.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(os.environ.get(name) for name in PROXIES):
        return bool(constants.HF_HUB_OFFLINE)
    endpoint = urlparse(constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=timeout).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if (datasets := sys.modules.get("datasets")) is not None:
            datasets.config.HF_HUB_OFFLINE = True
        say(f"{endpoint.hostname} does not answer; using only what is cached")
        return True
    return False
