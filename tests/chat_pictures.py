"""Pictures of the chat page for docs/: PYTHONPATH=src:tests python tests/chat_pictures.py DIR

The answers are written down here: no model is needed, and the pictures show every element.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from browser import DESKTOP, PHONE, chromium
from engine_double import EngineDouble, write_tokenizer
from gossamer.data.tokenizer import Tokenizer
from gossamer.serve.engine_worker import ModelInfo
from live_service import live

THOUGHT = """The person wants the idea rather than the formula. Start from what ordinary attention keeps, then say \
what the linear layers keep in its place.

- state: a matrix per head
- a write removes what the key held before
</think>

"""
ANSWERS = {
    "Why does": THOUGHT
    + """A gated delta layer keeps **one matrix per head** instead of a cache that grows with the text. Each token \
does three things to it:

1. **Decay.** The whole matrix fades a little, by a gate between 0 and 1.
2. **Erase.** What the matrix holds under the token’s key is read and partly taken away.
3. **Write.** The token’s value goes in under that key.

Written out for one head:

```python
def step(S, q, k, v, g, beta):
    S = S * g.exp()                      # decay
    old = k @ S                          # what this key holds so far
    S = S + beta * torch.outer(k, v - old)
    return q @ S, S
```

| | memory for 32K tokens | work for the next token |
|---|---:|---:|
| attention | grows with the text | grows with the text |
| gated delta rule | one 128 × 128 matrix | always the same |

So the price of a long context is paid only in the few layers that still attend.""",
    "And what": "It asks for the price.\n</think>\n\n"
    + """It loses *exact recall*: a matrix of fixed size cannot hold every pair of key and value apart. \
That is why every fourth layer is ordinary attention:

> Three layers that summarize, then one that looks things up.

The tests in `tests/ops` compare both forms, the step above and the chunked one, with float64.""",
    "Which layers": "Every fourth layer attends to the whole text. The three before it keep *one matrix per head*.",
    "def read_table": """
    \"\"\"Rows of a file of tab-separated values, without its head.\"\"\"
    with open(path, encoding="utf-8") as file:
        rows = [line.rstrip("\\n").split("\\t") for line in file]
    return rows[1:]
""",
}
LIST = ["Tokenizer for old Norse", "Loss goes up after warm-up", "Packing documents of odd lengths"]


class Scripted(EngineDouble):
    """Answers what stands above, a character in some ten milliseconds."""

    def submit(self, request):
        super().submit(request)
        item = self._all[request.id]
        turn = self._tokenizer.decode(request.prompt, special=True).split("<|im_start|>user")[-1]
        text = next((text for start, text in ANSWERS.items() if start in turn), "A short answer.")
        item.left = [*self._tokenizer.encode(text), self._tokenizer.eot_id]

    def step(self):
        time.sleep(0.004)
        return super().step()


def build(folder: Path):
    tokenizer = Tokenizer.load(folder)
    return lambda: (Scripted(tokenizer, 4), ModelInfo(32768, tokenizer.vocab_size, 4))


def ask(page, text: str) -> None:
    page.fill("#message", text)
    page.click("#send")
    page.wait_for_selector("#send:visible", timeout=120_000)


def visit(browser, url: str, device: dict, scheme: str):
    page = browser.new_context(**device, color_scheme=scheme).new_page()
    page.goto(url)
    page.wait_for_selector("#model:text('micro')")
    return page


def conversation(page) -> None:
    """Some conversations for the list, and the one that the pictures show."""
    for text in LIST:
        ask(page, text)
        page.keyboard.press("Control+Shift+O")
    page.keyboard.press("Control+,")
    page.select_option("#thinking", "on")
    page.click("#settings button.primary")
    ask(page, "Why does a linear attention layer need no growing cache?")


def take_chat(browser, url: str, out: Path) -> None:
    def shot(page, name: str) -> None:
        page.wait_for_timeout(400)
        page.screenshot(path=out / f"chat-{name}.png")

    page = visit(browser, url, DESKTOP, "light")
    conversation(page)
    page.evaluate("document.getElementById('scroller').scrollTop = 0")
    shot(page, "desktop-light")
    page.click("#settings-open")
    shot(page, "settings")

    page = visit(browser, url, DESKTOP, "dark")
    conversation(page)
    page.fill("#message", "And what does it lose by that?")
    page.click("#send")
    page.wait_for_selector(".message:last-child blockquote", timeout=60_000)
    shot(page, "desktop-dark")

    page = visit(browser, url, PHONE, "light")
    conversation(page)
    ask(page, "And what does it lose by that?")
    shot(page, "phone-light")

    page = visit(browser, url, PHONE, "dark")
    conversation(page)
    page.click("#sidebar-toggle")
    shot(page, "phone-dark")


def take_ratings(browser, url: str, out: Path) -> None:
    for name, device, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")):
        page = visit(browser, url, device, scheme)
        ask(page, "Which layers look things up?")
        page.get_by_role("button", name="Good answer").click()
        page.get_by_role("button", name="Note on this answer").click()
        page.get_by_role("textbox", name="Note on this answer").fill("Short, and it says which.")
        page.wait_for_timeout(400)
        page.screenshot(path=out / f"chat-rating-{name}.png")


def take_text(browser, url: str, out: Path) -> None:
    page = visit(browser, url, DESKTOP, "light")
    page.fill("#text", "def read_table(path):")
    page.click("#continue")
    page.wait_for_selector("#continue:visible", timeout=60_000)
    page.wait_for_timeout(200)
    page.screenshot(path=out / "chat-text.png")


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, chromium() as browser:
        chat = write_tokenizer(Path(first))
        with live(chat, partial(build, chat), name="micro") as service:
            take_chat(browser, service.url, out)
        with live(chat, partial(build, chat), name="micro", feedback=Path(first) / "ratings.jsonl") as service:
            take_ratings(browser, service.url, out)
        base = write_tokenizer(Path(second), form=None)
        with live(base, partial(build, base), name="micro") as service:
            take_text(browser, service.url, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
