"""Renders chat templates in processes of their own, which are ended if they take too long."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gossamer.data.chat.template_process import rendering
from gossamer.isolated import IsolatedWorkers, RefusedError, Worker, WorkerFailedError

__all__ = ["NUM_WORKERS", "Renderer"]

MAX_SECONDS = 5.0
"""Processor time that a template may take for a prompt."""
MAX_MEMORY = 512 << 20
"""Bytes that a template may take."""
NUM_WORKERS = 4
"""Prompts that are rendered at the same time."""
MAX_WORKER_PROMPTS = 1000
"""Prompts after which a worker is replaced by a fresh one."""


class Renderer:
    """Renders templates in processes of their own, which are ended if they take too long; for several threads.

    Args:
        plain: the source of the template for conversations without tools
        with_tools: the source of the template for conversations with tools
    """

    def __init__(self, plain: str, with_tools: str) -> None:
        self._are_different = plain != with_tools and bool(with_tools)
        sources = {"plain": plain} | ({"with tools": with_tools} if self._are_different else {})
        self._sources = json.dumps({"templates": sources}).encode()
        self._idle: list[Worker] = []
        self._slots = threading.BoundedSemaphore(NUM_WORKERS)

    def check(self) -> None:
        """Check that the sources are templates; raises as `text` does."""
        self._idle.append(self._start_worker())

    def text(self, tools: bool, variables: Mapping[str, Any]) -> str:
        """Render a template.

        Args:
            tools: whether to use the template for conversations with tools
            variables: the variables of the template

        Raises:
            RefusedError: the template refuses the variables or fails.
            WorkerFailedError: it takes too much time or memory.
        """
        return self._answer(tools, variables).decode(errors="surrogatepass")

    def text_with_spans(self, tools: bool, variables: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """Render a template, and say where in the text its `{% generation %}` blocks lie; raises as `text` does."""
        answer = json.loads(self._answer(tools, variables, spans=True))
        return answer["text"], [(begin, end) for begin, end in answer["spans"]]

    def texts(
        self, tools: bool, variables: Mapping[str, Any], cuts: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> list[str | RefusedError]:
        """Render a template for several beginnings of a conversation.

        Args:
            tools: whether to use the template for conversations with tools
            variables: the variables of the template, with all messages
            cuts: for each text how many of the messages it has, and the variables of its own

        Returns:
            For each text itself, or why the template refuses it.

        Raises:
            WorkerFailedError: it takes too much time or memory.
        """
        found = json.loads(self._answer(tools, variables, cuts=cuts))
        return [text if error is None else RefusedError(error) for text, error in found]

    def _answer(self, tools: bool, variables: Mapping[str, Any], **more: Any) -> bytes:
        try:
            name = "with tools" if tools and self._are_different else "plain"
            message = json.dumps({"template": name, "variables": variables, **more}).encode()
        except RecursionError as error:
            raise RefusedError("nested too deeply") from error
        with self._slots:
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = self._start_worker()
            try:
                answer = worker.ask(message, MAX_SECONDS)
            except WorkerFailedError:
                worker.close()
                raise
            except RefusedError:
                self._idle.append(worker)
                raise
            if worker.num_questions < MAX_WORKER_PROMPTS:
                self._idle.append(worker)
            else:
                worker.close()
        return answer

    def _start_worker(self) -> Worker:
        worker = _processes().worker()
        worker.ask(self._sources, MAX_SECONDS)
        return worker


@cache
def _processes() -> IsolatedWorkers:
    return IsolatedWorkers(rendering, memory=MAX_MEMORY)
