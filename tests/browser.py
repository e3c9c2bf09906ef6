"""A real Chromium for the chat page, driven by Playwright; the machine's own browser, none is downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


PATIENCE = 60_000  # milliseconds; tests share their machine
ATTACKS = """
<script>window.hit = 1</script>
<img src=x onerror="window.hit = 1"> <svg onload="window.hit=1"></svg>
<iframe srcdoc="<script>parent.hit=1</script>"></iframe>

[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](java\tscript:window.hit=1)
[d](data:text/html,<script>hit</script>)
[e](vbscript:x) [f]( javascript:window.hit=1 )
[g](<javascript:window.hit=1>) [h](&#106;avascript:window.hit=1) [i](//evil.test)
![j](javascript:window.hit=1) ![k](https://evil.test/pixel.png)
<javascript:window.hit=1> <https://ok.test/"onmouseover="hit>
[l](https://ok.test/" onclick="window.hit=1) [m](https://ok.test/?q='><script>) `<img src=x onerror=hit>`
<br onclick=hit>

| <img src=x onerror="window.hit=1"> | [x](javascript:hit) |
|---|---|
| <script>window.hit=1</script> | b |

```html" onmouseover="window.hit=1
<script>window.hit = 1</script>
```

# <img src=x onerror="window.hit=1">
- [ ] <style>*{display:none}</style>
> <form action=javascript:hit><button>x</button></form>
"""
"""What a model may say to have something run in the page."""


def obstacle() -> str | None:
    """Why no browser can be started here, in a line, or None."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "no playwright; pip install playwright"
    return None if _program() else "no chromium on the PATH; apt-get install chromium"


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_program(), args=arguments, timeout=180_000)
        yield browser
        browser.close()


def send(page: Any, text: str, wait: bool = True) -> None:
    """Send a message and, with `wait`, wait for the end of its answer."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")
    if wait:
        page.locator("#send").wait_for()


def texts(page: Any) -> list[str]:
    """What the messages say, as the page shows them."""
    return page.locator("#transcript .message > article > .prose").all_inner_texts()


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
