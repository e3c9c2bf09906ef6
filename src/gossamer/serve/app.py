"""The application: routes, the shape of errors, the OpenAPI description, and the chat page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from gossamer import __version__
from gossamer.serve.errors import ApiError, error_response, http_error, validation_error
from gossamer.serve.generation import ClientGone
from gossamer.serve.middleware import ApiKeys, RequestMiddleware, is_public
from gossamer.serve.routes import chat, completions, feedback, health, models, responses
from gossamer.serve.service import Service

__all__ = ["PAGE", "make_app"]

PAGE = Path(__file__).parent / "page"
"""The files of the chat page: index.html is served at `/`, the others below `/page/`."""

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",  # in Chromium no text can even be turned into markup
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def make_app(service: Service, keys: ApiKeys | None) -> FastAPI:
    """Return the ASGI application of a service, with which the engine starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            await service.engine.stop()

    app = FastAPI(
        title="gossamer",
        version=__version__,
        summary=f"An OpenAI-compatible API for the model {service.options.name}",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    families = (chat, completions, responses, models, feedback, health)
    for family in families:
        app.include_router(family.router)
    for kind, translate in _CLIENT_ERRORS.items():
        app.add_exception_handler(kind, _answer_with(translate))
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(Exception, _internal_error)
    if (PAGE / "index.html").is_file():
        app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)(_page)
        # which browsers ask for by themselves beside any page, even beside an answer of the API
        app.api_route("/favicon.ico", methods=["GET", "HEAD"], include_in_schema=False)(_icon)
        app.mount("/page", _PageFiles(directory=PAGE))
    routes = [*app.routes, *(route for family in families for route in family.router.routes)]
    named = [route for route in routes if hasattr(route, "path")]  # the routers that FastAPI includes have none
    app.add_middleware(RequestMiddleware, options=service.options, keys=keys, metrics=service.metrics, routes=named)
    if service.options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    _describe(app, keys is not None)
    return app


class _PageFiles(StaticFiles):
    """Files that browsers check again at each visit (304 if unchanged), so that no page mixes two versions."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _page() -> Response:
    return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)


async def _icon() -> Response:
    return FileResponse(PAGE / "icon.svg")


_CLIENT_ERRORS: dict[type[Exception], Callable[[Any], ApiError]] = {
    RequestValidationError: validation_error,
    HTTPException: http_error,
    ApiError: lambda error: error,
}
"""The exceptions that are meant for the client, and what translates them."""


def _answer_with(translate: Callable[[Any], ApiError]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        return error_response(translate(error))

    return answer


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; in the log and the metrics it stands under this number


async def _internal_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "the service failed at this request", "internal_error"))


def _describe(app: FastAPI, with_keys: bool) -> None:
    """Make the OpenAPI description say 400 for what cannot be understood, and ask for the key if one is needed."""
    make = app.openapi

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = make()
            for path, methods in description["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    if with_keys and not is_public(path):
                        operation["security"] = [{"key": []}]
            schemas = description["components"]["schemas"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            if with_keys:
                description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
