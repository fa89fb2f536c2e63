"""Whether servers can be reached: asked before libraries that would try for minutes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from urllib.parse import urlsplit

#: Seconds that all servers together may take to answer, name look-up included.
PATIENCE = 10.0


def find_silent(urls: Iterable[str]) -> str | None:
    """Asks one address of each server, all at once.

    Args:
        urls: Addresses. Any answer counts, such as that there is no such file.

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

    # The look-up of a name obeys no time limit, so nobody waits for these threads.
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in asked]
    waiter = threading.Thread(target=lambda: [thread.join() for thread in threads], daemon=True)
    for thread in [*threads, waiter]:
        thread.start()
    waiter.join(PATIENCE)
    return next((url for url in asked if url not in answered), None)
