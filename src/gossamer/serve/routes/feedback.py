"""POST /feedback: ratings of answers, which `gossamer tune` learns from."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from gossamer.errors import UserError
from gossamer.serve.errors import ApiError, invalid
from gossamer.serve.feedback import FeedbackFile
from gossamer.serve.replies import offered_tools, template_messages, template_tools
from gossamer.serve.routes.common import FEEDBACK_ERRORS, Served
from gossamer.serve.service import new_id
from gossamer.serve.wire.feedback import FeedbackAnswer, FeedbackRequest

router = APIRouter(tags=["feedback"])


async def _feedback_file(service: Served) -> FeedbackFile:
    if service.feedback is None:
        message = "this service keeps no ratings; whoever runs it can start it with --feedback FILE"
        raise ApiError(404, message, "feedback_off")
    return service.feedback


@router.post("/feedback", responses=FEEDBACK_ERRORS, summary="Rate an answer")
async def feedback(
    body: FeedbackRequest, service: Served, file: Annotated[FeedbackFile, Depends(_feedback_file)]
) -> FeedbackAnswer:
    """Keep a rating of an answer in the file that `--feedback` names; a later one with its `rating_id` replaces it."""
    service = service.of_model(body.model)
    tools = template_tools(offered_tools(service, body.tools, None))
    # An answer to what no template takes would end a tuning with an error.
    conversation = template_messages([*body.messages, *body.completion])
    await service.render(conversation[:-1], tools)
    rating_id = body.rating_id or new_id("rating_")
    try:
        await asyncio.to_thread(file.append, _line(body, service.options.name, service.fingerprint, rating_id))
    except UserError as error:
        raise ApiError(507, f"the rating was not kept: {error}", "not_kept") from error
    except ValueError as error:
        raise invalid(str(error)) from error
    return FeedbackAnswer(object="feedback", rating_id=rating_id)


def _line(body: FeedbackRequest, name: str, fingerprint: str, rating_id: str) -> dict[str, Any]:
    """Return what the file keeps of a rating; what was not said is left out."""
    fields = {"messages", "tools", "completion"}
    return body.model_dump(include=fields, exclude_none=True) | {
        "label": body.label,
        "model": {"name": name, "fingerprint": fingerprint},
        "sampling": body.sampling.model_dump(exclude_none=True) if body.sampling else {},
        "time": round(time.time(), 3),
        "note": body.note or "",
        "rating_id": rating_id,
    }
