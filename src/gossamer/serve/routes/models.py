"""GET /v1/models and POST /tokenize: the models that are served, and how long a prompt is."""

from __future__ import annotations

from fastapi import APIRouter

from gossamer.infer.defaults import sampling_for_readers
from gossamer.reading import text_of_name
from gossamer.serve.replies import offered_tools, template_messages, template_tools
from gossamer.serve.routes.common import ERRORS, Served, Statuses
from gossamer.serve.service import Service
from gossamer.serve.wire.completions import ModelAnswer, ModelsAnswer, TextPrompt, TokenizeAnswer, TokenizeRequest

router = APIRouter(tags=["models"])
_READ_ERRORS: Statuses = {status: ERRORS[status] for status in (401, 503)}


@router.get("/v1/models", responses=_READ_ERRORS, summary="List the models")
async def models(service: Served) -> ModelsAnswer:
    """The model that is served, and its adapters."""
    return ModelsAnswer(object="list", data=[_model(one) for one in (service, *service.adapters.values())])


@router.get("/v1/models/{name:path}", responses=_READ_ERRORS | {404: ERRORS[404]}, summary="Describe the model")
async def model(name: str, service: Served) -> ModelAnswer:
    """The model by its name."""
    return _model(service.of_model(name))


@router.post("/tokenize", responses=ERRORS, summary="Count and show a prompt's tokens")
async def tokenize(body: TokenizeRequest, service: Served) -> TokenizeAnswer:
    """The tokens of a text as /v1/completions takes it, or of a conversation as /v1/chat/completions does."""
    service = service.of_model(body.model)
    if isinstance(body, TextPrompt):
        ids = await service.encode(body.prompt)
    else:
        tools = template_tools(offered_tools(service, body.tools, body.tool_choice))
        prompt = await service.render(template_messages(body.messages), tools, body.chat_template_kwargs)
        ids = prompt.ids
    return TokenizeAnswer(count=len(ids), max_model_len=service.info.max_model_len, tokens=list(ids))


def _model(service: Service) -> ModelAnswer:
    return ModelAnswer(
        id=service.options.name,
        object="model",
        created=service.created,
        owned_by="gossamer",
        max_model_len=service.info.max_model_len,
        chat_template="default" if service.template.is_default else "checkpoint",
        tools=service.template.tools is not None,
        sampling=sampling_for_readers(service.defaults),
        feedback=None if service.feedback is None else text_of_name(str(service.feedback.path)),
    )
