"""GET /health, /ready, /metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from gossamer.serve.errors import unavailable
from gossamer.serve.metrics import CONTENT_TYPE
from gossamer.serve.routes.common import ERRORS, Served

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The answer of /health and /ready."""

    status: Literal["ok"]


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Is the process alive")
async def health() -> Health:
    """200 as long as the service answers at all, for whatever restarts dead services. No key is needed."""
    return Health(status="ok")


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses={503: ERRORS[503]}, summary="Are requests taken")
async def ready(service: Served) -> Health:
    """200 while requests are accepted, for load balancers. No key is needed."""
    if service.engine.state != "ready":
        raise unavailable(f"the engine is {service.engine.state}", service.engine.state, 5)
    return Health(status="ok")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: ERRORS[401]},
    summary="Figures for Prometheus",
)
async def metrics(service: Served) -> Response:
    """Counters and times in Prometheus' text format."""
    page = service.metrics.page(service.engine.state == "ready", service.engine.active)
    return Response(page, media_type=CONTENT_TYPE)
