"""What the front and the engine process say to each other: msgspec structs in length-prefixed frames (``frames.py``).

The front numbers requests; the engine answers each ``Generate`` with one ``Accepted``, any number of ``TokenEvent`` in
``Step`` frames (one frame a step of the model, for all requests it served), and one ``Finished``; or with one
``Refused``.  ``Embed``, ``Tokenize``, ``Detokenize``, ``Switch``, ``Prepare`` and ``SaveCache`` have one answer each,
or ``Refused``.  ``Cancel`` ends a ``Generate``, which is answered still, or an ``Embed``, which is not.  ``Status``
comes unasked, at least every ``HEARTBEAT_SECONDS``; an engine that keeps quiet for long hangs.

An engine knows nothing of earlier engines: what a new one needs to continue a request is in ``Generate.generated``.
What it computes of that again it may be spared, where it is given a KV cache that was saved (``EngineSettings``).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PROTOCOL_VERSION = 3
"""Both sides come from one installation; another number means a process that was left over from an older one."""
HEARTBEAT_SECONDS = 0.25

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
Refusal = Literal[
    "invalid", "context_length", "unknown_variant", "no_template", "no_embeddings", "no_memory", "busy", "failed"
]
"""Why a request cannot be done; the front turns it into an HTTP status."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base of what travels; tagged by the class name."""


# --- front to engine -------------------------------------------------------------------------------------------------


class Sampling(_Message, frozen=True, kw_only=True):
    """How tokens are drawn; ranges as in OpenAI's API, names as in llama.cpp.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k, top_p, min_p: 0, 1 and 0 switch them off.
        repeat_penalty: over the last 64 tokens; 1 switches it off.
        frequency_penalty, presence_penalty: OpenAI's, over what was generated; 0 switches them off.
        seed: equal seeds give equal draws.
        logit_bias: token id -> added to its logit; -100 and less forbid it.
        grammar: GBNF that the text must follow, or None.
        json_schema: JSON schema (as JSON text) that the text must follow, or None; not together with ``grammar``.
        schema_is_strict: refuse keywords of the schema that no grammar can hold an answer to; else they are left out.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    grammar: str | None = None
    json_schema: str | None = None
    schema_is_strict: bool = False


class Chat(_Message, frozen=True, kw_only=True):
    """A chat, to be rendered by the model's own template.

    Attributes:
        messages: as OpenAI has them, contents already plain text.
        tools: OpenAI's tool definitions, or None.
        tool_choice: ``auto``, ``none``, ``required``, or the name of the function that must be called.
        continue_last: the last message is the assistant's and is to be continued.
        template_options: given to the template besides (for example ``enable_thinking``).
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str = "auto"
    continue_last: bool = False
    template_options: dict[str, Any] = {}


class Generate(_Message, frozen=True, kw_only=True):
    """Continue a prompt.

    Attributes:
        id: the front's number of the request, never used twice in one engine.
        prompt: text, token ids, or a chat.
        max_tokens: most tokens to write; None fills the context.  0 with ``echo`` only scores the prompt.
        stop: the text ends before any of these.
        n_logprobs: log-probabilities of this many most likely tokens beside each token's own; None for none.
        echo: tell the prompt's text after ``Accepted``, with ``n_logprobs`` its tokens' scores too (``Scored``).
        variant: the variant that must compute it; None for whatever runs.
        priority: higher goes first, and may push lower ones aside.
        deadline_seconds: from now; what is not finished then ends with ``deadline``.  None for none.
        generated: tokens that an earlier engine wrote and the front has passed on; they count for ``max_tokens``.
        ignore_end: go on after end-of-text tokens (benchmarks).
        class_name: the class that its promises are made to; "" for the usual one.  The engine knows priorities only.
    """

    id: int
    prompt: str | list[int] | Chat
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: list[str] = []
    n_logprobs: int | None = None
    echo: bool = False
    variant: str | None = None
    priority: int = 0
    deadline_seconds: float | None = None
    generated: list[int] = []
    ignore_end: bool = False
    class_name: str = ""


class Embed(_Message, frozen=True, kw_only=True):
    """The embedding of each input: text or token ids.

    Attributes:
        most_tokens: of one input, beside what the context holds; None for no other limit.
    """

    id: int
    inputs: list[str | list[int]]
    most_tokens: int | None = None


class Tokenize(_Message, frozen=True, kw_only=True):
    """The token ids of a text; ``add_special`` adds what the model wants at its start, such as BOS.

    Attributes:
        most_tokens: beside what the context holds: a text that certainly has more is refused; None for no other limit.
    """

    id: int
    text: str
    add_special: bool = True
    most_tokens: int | None = None


class Detokenize(_Message, frozen=True, kw_only=True):
    """The text of tokens."""

    id: int
    tokens: list[int]


class Cancel(_Message, frozen=True, kw_only=True):
    """End a request; it still gets ``Finished``, unless it has had it."""

    id: int


class Switch(_Message, frozen=True, kw_only=True):
    """Run at another variant from the next step on, as soon as its pages are read in.

    Attributes:
        cache: what becomes of the KV cache: ``keep`` it, or ``recompute`` it when the engine is idle.
        saves_memory: take no more than what is taken now meanwhile, shard by shard if need be, and keep nothing warm
            after it; until a switch without it.
    """

    id: int
    variant: str
    cache: Literal["keep", "recompute"] = "keep"
    saves_memory: bool = False


class Prepare(_Message, frozen=True, kw_only=True):
    """Read a variant in, in the background, so that a later switch takes a millisecond."""

    id: int
    variant: str


class SaveCache(_Message, frozen=True, kw_only=True):
    """Write the KV cache of all sequences into a folder, for the next engine (``EngineSettings.cache_folder``).

    What is computed after it is not in it, so the engine should be ended soon.
    """

    id: int
    folder: str


class Stop(_Message, frozen=True, kw_only=True):
    """End the process; running requests are not waited for (the front drains before)."""


FrontMessage = Generate | Embed | Tokenize | Detokenize | Cancel | Switch | Prepare | SaveCache | Stop


# --- engine to front -------------------------------------------------------------------------------------------------


class LayerFacts(_Message, frozen=True, kw_only=True):
    """One layer of a variant: its precision in words (``int8``, or ``5 Q4_K, 2 Q6_K``) and its bits per weight."""

    precision: str
    bits: float


class VariantFacts(_Message, frozen=True, kw_only=True):
    """A variant that can be served: name, bytes of its shards, mean bits per weight, predicted KL (or None), layers."""

    name: str
    n_bytes: int
    bits_per_weight: float
    predicted_kl: float | None = None
    layers: list[LayerFacts] = []


class Hello(_Message, frozen=True, kw_only=True):
    """First message of an engine that has loaded its model and is ready.

    Attributes:
        protocol: must be ``PROTOCOL_VERSION``.
        model: name of the model, from the GGUF metadata, else of the store.
        architecture: llama.cpp's name of it.
        variant: the one that runs.
        variants: all that can be switched to.
        n_ctx: tokens that one sequence may have.
        n_cells: tokens that the KV cache holds in all.
        n_sequences: requests that run at once; others wait.
        n_vocabulary: tokens in the vocabulary.
        n_trained: tokens of context the model was trained for.
        has_chat: whether the model has a chat template.
        has_embeddings: whether ``Embed`` can be answered.
        load_seconds: from the start of the process.
        n_taken_over: KV cells that were found in ``EngineSettings.cache_folder``.
        bos_token, eos_token: texts of the tokens that stand before and after a text; "" where the model has none.
        chat_template: in Jinja, or None.
    """

    protocol: int
    pid: int
    model: str
    architecture: str
    variant: str
    variants: list[VariantFacts]
    n_ctx: int
    n_cells: int
    n_sequences: int
    n_vocabulary: int
    n_trained: int
    has_chat: bool
    has_embeddings: bool
    load_seconds: float
    n_taken_over: int = 0
    bos_token: str = ""
    eos_token: str = ""
    chat_template: str | None = None


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of a token; ``piece`` are its bytes, which may be a part of a character."""

    token: int
    piece: bytes
    logprob: float


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token's own log-probability and the most likely ones, best first.

    Nothing predicts the first token of a prompt (``is_first``): it has 0.0, and no others beside it.
    """

    chosen: Logprob
    is_first: bool
    top: list[Logprob]


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One token of one request.

    Attributes:
        id: of the request.
        token: its id in the vocabulary.
        text: what became certain with it; empty inside a character or a possible stop string.
        score: with ``n_logprobs``, else None.
    """

    id: int
    token: int
    text: str
    score: TokenScore | None = None


class Step(msgspec.Struct, frozen=True, tag=True):
    """The tokens of one step of the model, and the variant that computed them."""

    variant: str
    tokens: list[TokenEvent]


class Accepted(_Message, frozen=True, kw_only=True):
    """The prompt was understood.

    Attributes:
        prompt_tokens: of the prompt as the model sees it.
        calls_tools: the answer is a tool call from its first character on (``tool_choice`` asked for it).
    """

    id: int
    prompt_tokens: int
    calls_tools: bool = False


class Scored(_Message, frozen=True, kw_only=True):
    """With ``echo``: the prompt's own text and, with ``n_logprobs``, the score of each of its tokens."""

    id: int
    text: str
    scores: list[TokenScore] = []


class Finished(_Message, frozen=True, kw_only=True):
    """A request's end.

    Attributes:
        text: text that was held back (a possible stop string) and now is certain.
        cached_tokens: tokens of the prompt that were found in the KV cache.
        generated_tokens: all that were written, ``Generate.generated`` included, without the end of the text.
        queue_seconds, prompt_seconds, token_seconds: waiting, reading the prompt, and writing.
    """

    id: int
    reason: FinishReason
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0
    prompt_seconds: float = 0.0
    token_seconds: float = 0.0


class Refused(_Message, frozen=True, kw_only=True):
    """A request that cannot be done: why, in one sentence, and what would work."""

    id: int
    why: Refusal
    message: str


class Embedded(_Message, frozen=True, kw_only=True):
    """Answer to ``Embed``: one vector an input, and the tokens read."""

    id: int
    vectors: list[list[float]]
    prompt_tokens: int


class Tokenized(_Message, frozen=True, kw_only=True):
    """Answer to ``Tokenize``."""

    id: int
    tokens: list[int]


class Detokenized(_Message, frozen=True, kw_only=True):
    """Answer to ``Detokenize``; control tokens are in the text."""

    id: int
    text: str


class Switched(_Message, frozen=True, kw_only=True):
    """Answer to ``Switch``.

    Attributes:
        stall_seconds: how long no step could run because of it, in all.
        n_steps: moments in which it was done: 1, or one for each shard, where the memory ceiling has no room for both
            variants.  Steps of the model in between were computed by a mixture of both.
        longest_stall_seconds: the longest of these moments.
        peak_bytes: the most memory that weights took meanwhile.
    """

    id: int
    before: str
    after: str
    n_weights: int
    n_shards: int
    stall_seconds: float
    prepare_seconds: float
    n_steps: int = 1
    longest_stall_seconds: float = 0.0
    peak_bytes: int = 0


class Prepared(_Message, frozen=True, kw_only=True):
    """Answer to ``Prepare``.

    Attributes:
        is_whole: whether all of it is in memory now; False where the memory ceiling has no room for it beside what is
            in use, and a switch will go shard by shard.
    """

    id: int
    variant: str
    seconds: float
    is_whole: bool = True


class CacheSaved(_Message, frozen=True, kw_only=True):
    """Answer to ``SaveCache``: KV cells and bytes that were written, and how long that took."""

    id: int
    n_cells: int
    n_bytes: int
    seconds: float


class Status(_Message, frozen=True, kw_only=True):
    """Heartbeat, and the figures that change.

    Attributes:
        step_seconds_now: how long the engine has been at the step in progress and what goes with it (copies, a pass for
            embeddings, saving); 0 while it waits.  Grows without end in a hung engine.
        n_running, n_waiting, n_parked: requests that have a place, to read their prompt or to write; that wait for one;
            and those among the waiting that have had one, and were pushed aside.
        cells_used: KV cells in use, prefixes kept for later included.
        n_steps, n_prompt_tokens, n_cached_tokens, n_generated_tokens, n_switches: since the process started; a request
            that was pushed aside is not counted as cached when it goes on.
        switch_seconds: stall of all switches together.
        flip_seconds: time spent on alternating between variants of concurrent requests.
        mapped_bytes, private_bytes: pages of shards mapped now, and private memory of the process.
        warm: variants that can be switched to at once.
    """

    variant: str
    step_seconds_now: float
    n_running: int
    n_waiting: int
    n_parked: int
    cells_used: int
    n_steps: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_generated_tokens: int
    n_switches: int
    switch_seconds: float
    flip_seconds: float
    mapped_bytes: int
    private_bytes: int
    warm: list[str]


class Failed(_Message, frozen=True, kw_only=True):
    """The engine cannot start, or cannot go on; the last message before it exits."""

    message: str


EngineMessage = (
    Hello
    | Accepted
    | Scored
    | Step
    | Finished
    | Refused
    | Embedded
    | Tokenized
    | Detokenized
    | Switched
    | Prepared
    | CacheSaved
    | Status
    | Failed
)
