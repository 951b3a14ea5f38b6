"""Bodies of requests.  Types are not converted: ``"5"`` is no number.  Fields that nobody knows are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_TIMEOUT_SECONDS = 86_400
_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

Text = Annotated[str, Field(strict=True)]
Filled = Annotated[str, Field(strict=True, min_length=1)]
TokenId = Annotated[StrictInt, Field(ge=0, le=_INT32)]
TokenKey = Annotated[int, Field(ge=0, le=_INT32)]
"""A token as a key of a JSON object, which is always a string."""
Count = Annotated[StrictInt, Field(ge=0, le=_INT32)]
Logprobs = Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[StrictFloat, Field(ge=-2, le=2)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]


class Body(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """``include_usage``: the last event says how many tokens there were."""

    include_usage: StrictBool | None = None


class GenerationBody(Body):
    """Of chats and completions: OpenAI's fields, some of llama.cpp's, ``priority``, ``class`` and ``timeout``."""

    model: Text = ""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    stop: Filled | Annotated[list[Filled], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[StrictInt, Field(ge=-_INT64 - 1, le=_INT64)] | None = None
    temperature: Annotated[StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Annotated[StrictFloat, Field(ge=-100, le=100)]] | None = None
    user: Text | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=_INT32)] | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[StrictFloat, Field(gt=0, le=100)] | None = None
    grammar: Text | None = None
    ignore_eos: StrictBool | None = None
    priority: Annotated[StrictInt, Field(ge=-_INT32, le=_INT32)] | None = None
    class_name: Filled | None = Field(default=None, alias="class")
    timeout: Annotated[StrictFloat, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] | None = None

    @property
    def n_choices(self) -> int:
        """For one prompt."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """``stop`` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ContentPart(Body):
    """A part of a message; only text can be read."""

    type: Text
    text: Text | None = None


class Message(Body):
    """One message of a chat.  What templates may want besides (``reasoning_content``, ...) is kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[ContentPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class FunctionDefinition(Body):
    """A function that may be called."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: Annotated[str, Field(strict=True, min_length=1, max_length=256)]
    parameters: dict[str, Any] | None = None


class ToolDefinition(Body):
    """A tool: always a function."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    """Names a function."""

    name: Filled


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    """A schema that the answer must follow.

    Attributes:
        strict: refuse a schema with keywords that no grammar can hold an answer to; else they are left out.
    """

    name: Text | None = None
    strict: Annotated[bool, Field(strict=True)] | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """``json_object`` may have a ``schema`` of its own, as in llama.cpp."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    own_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    prompt: Text | Tokens | Annotated[list[Text], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    best_of: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    echo: StrictBool | None = None
    logprobs: Logprobs | None = None
    suffix: Text | None = None


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    input: Filled | Tokens | Annotated[list[Filled], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    model: Text = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: Text | None = None


class ErrorFacts(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorFacts
