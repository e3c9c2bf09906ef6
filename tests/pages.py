"""Runs as a report finds them, and pages read back."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

START = {
    "event": "start", "time": 1_795_458_000.0, "step": 0, "gossamer": "0.1.0", "torch": "2.13.0",
    "device": "cpu (a chip)", "parameters": 57_012_736, "active_parameters": 9_134_080, "flops_per_token": 6e7,
    "tokens_per_step": 4096, "steps": 40, "corpus": "tales & fables",
}  # fmt: skip


def train(step: int, **values: Any) -> dict[str, Any]:
    place = {"event": "train", "step": step, "tokens": 4096 * step, "elapsed": 2.5 * step}
    return (
        place | {"loss": 8 - step / 10, "grad_norm": 1.5, "learning_rate": 1e-3, "tokens_per_second": 1600.0} | values
    )


def evaluation(step: int, loss: float | None) -> dict[str, Any]:
    place = {"event": "eval", "step": step, "tokens": 4096 * step, "elapsed": 2.5 * step}
    return place | {
        "loss": loss,
        "perplexity": None if loss is None else 2.718281828**loss,
        "bits_per_byte": loss and loss / 2,
    }


def whole_run() -> list[dict[str, Any]]:
    events = [START, *(train(step, mtp_loss=9.0, aux_loss=1.0) for step in range(1, 41))]
    events[21:21] = [evaluation(20, 5.0), {"event": "sample", "step": 20, "text": "once upon"}]
    events += [evaluation(40, 4.5), {"event": "sample", "step": 40, "text": "a time"}]
    return [
        *events,
        {"event": "end", "step": 40, "tokens": 163_840, "elapsed": 100.0, "loss": 4.5, "bits_per_byte": 2.25},
    ]


class Page(HTMLParser):
    """Read a page back: its tags and attributes, the text of its elements, and that every element is closed in turn."""

    VOID = frozenset({"meta", "link", "input", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self._texts: list[list[str]] = []  # tag and text of each element, without its children's
        self._within: list[int] = []
        self._flow: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self._open.append(tag)
            self._within.append(len(self._texts))
            self._texts.append([tag, ""])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._within.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._texts[self._within[-1]][1] += data
        if self._open and self._open[-1] not in ("style", "script"):
            self._flow.append(data)

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self._texts if name == tag]

    def __contains__(self, words: str) -> bool:
        return words in re.sub(r"\s+", " ", " ".join(self._flow))


def record(folder: Path, events: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
