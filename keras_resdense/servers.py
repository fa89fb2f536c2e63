"""Checks whether servers can be reached, before libraries try for minutes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from urllib.parse import urlsplit

#: Seconds for all servers together to answer, including name look-up.
PATIENCE = 10.0


def find_silent(urls: Iterable[str]) -> str | None:
    """Sends a request to one address of each server, all at the same time.

    Args:
        urls: Addresses. Any answer counts, even an error.

    Returns:
        An address whose server did not answer within `PATIENCE`, or None if all did.
    """
    import requests

    asked = list({urlsplit(url).netloc: url for url in urls}.values())
    answered = set()

    def ask(url: str) -> None:
        try:
            requests.head(url, timeout=PATIENCE)
            answered.add(url)
        except requests.RequestException:
            pass

    # Name look-up has no time limit, so these threads are not joined here.
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in asked]
    waiter = threading.Thread(target=lambda: [thread.join() for thread in threads], daemon=True)
    for thread in [*threads, waiter]:
        thread.start()
    waiter.join(PATIENCE)
    return next((url for url in asked if url not in answered), None)
