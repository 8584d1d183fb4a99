"""The endpoint's vocabulary: OpenAI's images API, and what this project adds to it.

Always true here: whatever a client sends is checked against these types before anything else happens; an
error names the parameter and what is accepted, and never repeats what was sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from actors.prompts import MAX_WORDS
from cluster.serving.events import Refused

MAX_PROMPT_CHARACTERS = 4000
MAX_IMAGES = 10
"""Of one request; as in OpenAI's API."""
MAX_SEED = 2**63 - 1


def _or_null(schema: dict[str, Any]) -> None:
    """Every parameter but the prompt may be null, as OpenAI's clients send it for what is left out."""
    for name, described in schema["properties"].items():
        if name != "prompt" and {"type": "null"} not in described.get("anyOf", ()):
            outside = {key: described.pop(key) for key in ("title", "default") if key in described}
            schema["properties"][name] = {"anyOf": [described, {"type": "null"}], **outside}


class GenerationRequest(BaseModel):
    """Body of POST /v1/images/generations. A parameter that is null is one that is left out."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_or_null)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
    model: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    user: Annotated[str, Field(max_length=256)] | None = None
    """Ignored, as the next one."""
    safety_identifier: Annotated[str, Field(max_length=256)] | None = None
    quality: Literal["auto", "standard"] = "auto"
    """This and the next four take the values of OpenAI's that ask for what is done anyway."""
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    output_format: Literal["png"] = "png"
    output_compression: Literal[100] = 100
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    """At most so many: none is sent, as `previews` tell more."""
    stream: bool = False
    """Server-sent events: every decision as it is taken, then the image."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Of the first image; the next ones count on from it. None: drawn, and told in the response."""
    max_nfe: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Denoiser calls that an image may cost; None: as the policy was trained."""
    quality_floor: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The lowest mean quality that is acceptable, in the score that the policy was calibrated with."""
    previews: bool = False
    """With `stream`: a small image with each decision."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {
            name: value
            for name, value in body.items()
            if value is not None or name == "prompt" or name not in cls.model_fields
        }

    @field_validator("prompt")
    @classmethod
    def _has_words(cls, prompt: str) -> str:
        words = len(prompt.split())
        if not 1 <= words <= MAX_WORDS:
            raise ValueError(f"give 1 to {MAX_WORDS} words")
        return prompt


class Decision(BaseModel):
    """One decision of an image, as decided at `step` of the schedule; nfe: denoiser calls spent before it."""

    action: str
    step: int
    timestep: float
    nfe: int
    attempt: int
    image_reward: float | None = None


class Image(BaseModel):
    """One finished image, PNG in base64, and how it came about."""

    b64_json: str
    seed: int
    nfe: int
    network_evals: int
    looks: int
    attempts: int
    cost: float
    model_version: str
    decisions: list[Decision]


class GenerationResponse(BaseModel):
    """What comes back where nothing is streamed."""

    created: int
    model: str
    model_version: str
    size: str
    output_format: Literal["png"] = "png"
    data: list[Image]


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


def error_body(refused: Refused) -> dict[str, Any]:
    """The error as JSON will say it."""
    detail = ErrorDetail(message=refused.message, type=refused.kind, param=refused.param, code=refused.code)
    return ErrorResponse(error=detail).model_dump()


def read_request(body: bytes) -> GenerationRequest | Refused:
    """The request, or what is wrong with it."""
    try:
        request = GenerationRequest.model_validate_json(body)
    except ValidationError as error:
        return _refused(error)
    if request.previews and not request.stream:
        return Refused(400, "previews is true; accepted with stream true only", param="previews")
    if request.seed is not None and request.seed + request.n - 1 > MAX_SEED:
        return Refused(400, f"seed + n goes beyond {MAX_SEED}; give a lower seed", param="seed")
    return request


def _refused(error: ValidationError) -> Refused:
    """The first thing that is wrong; an optional parameter is wrong in each of its types at once."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    if param not in GenerationRequest.model_fields:
        param = None  # a name of the client's own making is not repeated
    if first["type"] == "json_invalid":
        return Refused(400, "the body is not valid JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        accepted = ", ".join(GenerationRequest.model_fields)
        return Refused(400, f"unknown parameter; accepted: {accepted}", code="unknown_parameter")
    if first["type"] == "missing":
        return Refused(400, f"{param} is missing", param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return Refused(400, f"{param or 'the body'}: {message}", param=param, code="invalid_value")
