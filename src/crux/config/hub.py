"""Checks that the Hugging Face hub can be reached."""

import os
import socket
import threading
import urllib.request
from urllib.parse import urlsplit

OFFLINE_VARIABLES = "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"


def explain_unreachable_hub(*, seconds: float) -> str | None:
    """Return why the hub, or the proxy in front of it, accepts no connection in time; None if it does.

    Args:
        seconds: time limit, name resolution included.
    """
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON"):
            return f"{name} is set"
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urllib.request.getproxies().get(hub.scheme)
    if proxy and hub.hostname and not urllib.request.proxy_bypass(hub.hostname):
        hub = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = hub.hostname or "", hub.port or (443 if hub.scheme == "https" else 80)
    result = ["no answer"]

    def probe() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            result[0] = ""
        except OSError as e:
            result[0] = e.strerror or str(e)

    thread = threading.Thread(target=probe, daemon=True)  # getaddrinfo has no timeout of its own
    thread.start()
    thread.join(seconds)
    return f"{address[0]}:{address[1]}: {result[0]}" if result[0] else None
