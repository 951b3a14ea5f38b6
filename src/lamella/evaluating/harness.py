"""A variant of a store as a model of lm-evaluation-harness, so that any of its tasks can be run on it.

    import lm_eval
    from lamella.evaluating.harness import LamellaLM          # registers the name "lamella"

    lm_eval.simple_evaluate(model="lamella", model_args={"store": "store", "variant": "small"}, tasks=["piqa"])

Needs the extra ``lamella[lm-eval]``; only the command ``lamella lm-eval`` imports this module, when it runs.
Log-likelihoods are those of ``lamella eval --task``: same tokens, same weights as they are mapped, same KV cache reuse.
Requests are answered one after another, in the harness's order, which puts those that share a context side by side.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lamella.core.errors import InvalidRequest
from lamella.evaluating.requests import Request, cut_request, make_request, start_tokens, tokenize_prompt
from lamella.evaluating.subject import Answer, Room, Subject
from lamella.llama import chat_template as templates
from lamella.llama.context import ContextOptions
from lamella.llama.sampling import SamplingOptions
from lamella.quantize.rebuild import restorer
from lamella.run.engine import Engine, EngineOptions, largest_variant
from lamella.store.store import Store
from lamella.version import __version__

LONGEST = 2048
"""Tokens read at once where the model does not say for how many it was trained; the harness's own default."""

KNOWN_OPTIONS = frozenset(
    ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """One text to write; ``n_cut`` tokens of its prompt did not fit."""

    prompt: list[int]
    max_tokens: int
    stop: tuple[str, ...]
    sampling: SamplingOptions
    n_cut: int


@register_model("lamella")
class LamellaLM(LM):  # type: ignore[misc]  # lm_eval is optional: mypy knows nothing of it
    """One variant, loaded once.

    Attributes:
        max_length: tokens that are read at once; longer contexts lose their start.
    """

    def __init__(
        self,
        store: str | Path,
        variant: object = None,
        max_length: int | None = None,
        threads: int = 0,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        """Load a variant.

        Args:
            store: folder.
            variant: its name (``model_args`` turn one of digits into a number); None takes the largest.
            max_length: None for what the model was trained for.
            threads: 0 for the cores that this process may use.
            batch_size, max_batch_size, device: the harness gives them to every model; nothing follows from them.

        Raises:
            InvalidRequest: ``max_length`` below 2.
            StoreError, EngineFailed: the variant cannot be loaded.
        """
        super().__init__()
        del batch_size, max_batch_size, device
        if max_length is not None and max_length < 2:
            raise InvalidRequest(f"max_length must be at least 2, not {max_length}")
        self._store = Store.open(Path(store), restorer(threads))
        self._variant = largest_variant(self._store) if variant is None else self._store.variant(str(variant))
        self._threads = threads
        self._subject = Subject(self._store, [self._variant])
        self._subject.use(self._variant.name)
        self.max_length = max_length or self._subject.model.trained_context or LONGEST

    def close(self) -> None:
        """Free everything; later calls do nothing."""
        self._subject.close()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """``log p`` of each continuation after its context, and whether greedy decoding would write it.

        Raises:
            InvalidRequest: a continuation is longer than ``max_length``.
        """
        vocabulary, most = self._subject.vocabulary, self.max_length
        pairs: list[tuple[str, str]] = [r.args for r in requests]
        asked = [make_request(vocabulary, before, after, most, parse_special=True) for before, after in pairs]
        _warn_of_cuts([r.n_cut for r in asked])
        found = []
        for request, answer in zip(requests, self._answers(asked, "loglikelihood", disable_tqdm), strict=True):
            found.append((-float(answer.losses.sum()), answer.is_greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """``log p`` of whole texts, each read in windows of ``max_length`` tokens as the harness cuts them."""
        windows = [self._windows(r.args[0]) for r in requests]
        every = [w for of_text in windows for w in of_text]
        answers = iter(self._answers(every, "loglikelihood_rolling", disable_tqdm))
        found = []
        for request, of_text in zip(requests, windows, strict=True):
            found.append(-float(sum(next(answers).losses.sum() for _ in of_text)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow, each up to one of its stop strings, to the end that the model sets, or to its length.

        Raises:
            InvalidRequest: more tokens are asked for than ``max_length`` leaves room for.
        """
        jobs = [self._job(i, *r.args) for i, r in enumerate(requests)]
        if not jobs:
            return []
        _warn_of_cuts([job.n_cut for job in jobs])
        found = []
        with Engine.open(self._store, self._variant.name, self._engine_options(jobs)) as engine:
            for request, job in zip(requests, tqdm(jobs, desc="generate_until", disable=disable_tqdm), strict=True):
                found.append(
                    engine.generate(job.prompt, max_tokens=job.max_tokens, sampling=job.sampling, stop=job.stop).text()
                )
                self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a chat.

        Args:
            add_generation_prompt: open the assistant's turn; else the last message is the beginning of an answer, and
                the prompt ends with it.

        Raises:
            EngineFailed: the model has no template, or it refuses the messages.
        """
        return templates.render(self._subject.model, chat_history, continue_last=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, for the harness's records.

        Raises:
            InvalidRequest: a template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise InvalidRequest(
                f"chat template '{chat_template}' by name; a model file has one, use it without a name"
            )
        return self._subject.model.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers and templates apart where the harness keeps rendered requests."""
        template = (self._subject.model.chat_template or "").encode()
        return f"lamella-{self._store.identity.structure[:16]}-{hashlib.sha256(template).hexdigest()[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        identity = self._store.identity
        return {
            "lamella": __version__,
            "store": str(self._store.path),
            "variant": self._variant.name,
            "model_name": identity.name,
            "model_weights": identity.weights,
            "bits_per_weight": self._variant.plan.bits_per_weight,
            "model_bytes": self._variant.n_bytes,
            "max_length": self.max_length,
        }

    def _answers(self, asked: Sequence[Request], what: str, quiet: bool) -> list[Answer]:
        if not asked:
            return []
        self._subject.make_room(Room.for_requests(asked), self._threads)
        return [self._subject.answer(request) for request in tqdm(asked, desc=what, disable=quiet)]

    def _windows(self, text: str) -> list[Request]:
        vocabulary = self._subject.vocabulary
        tokens = vocabulary.tokenize(text, add_special=False)
        windows = get_rolling_token_windows(tokens, start_tokens(vocabulary)[0], self.max_length, 1)
        return [cut_request(before, after, self.max_length) for before, after in map(make_disjoint_window, windows)]

    def _job(self, index: int, context: str, options: Mapping[str, Any]) -> _Job:
        wanted = normalize_gen_kwargs(dict(options))
        room = self.max_length - wanted["max_gen_toks"]
        if room < 1:
            raise InvalidRequest(
                f"{wanted['max_gen_toks']} tokens to generate, but the model reads {self.max_length} at once; "
                f"ask for fewer: --gen_kwargs max_gen_toks={self.max_length // 2}"
            )
        if index == 0 and (unknown := sorted(wanted.keys() - KNOWN_OPTIONS)):
            _log.warning("generation options that Lamella does not have are left out: %s", ", ".join(unknown))
        vocabulary = self._subject.vocabulary
        tokens = tokenize_prompt(vocabulary, context, True) or start_tokens(vocabulary)
        stop = tuple(s for s in wanted["until"] if s)
        return _Job(tokens[-room:], wanted["max_gen_toks"], stop, _sampling(wanted, index), max(0, len(tokens) - room))

    def _engine_options(self, jobs: Sequence[_Job]) -> EngineOptions:
        """Room for the longest; weights as they are mapped, as for log-likelihoods."""
        n_ctx = max(len(job.prompt) + job.max_tokens for job in jobs)
        return EngineOptions(ContextOptions(n_ctx=n_ctx, n_threads=self._threads), layout="mapped", n_warm=1)


def _sampling(options: Mapping[str, Any], index: int) -> SamplingOptions:
    """Greedy, or what was asked for and nothing else; repeats of a request differ in their seed."""
    if not options["do_sample"]:
        return SamplingOptions(temperature=0, repeat_penalty=float(options.get("repetition_penalty", 1)))
    return SamplingOptions(
        temperature=float(options.get("temperature", 1)),
        top_k=int(options.get("top_k", 0)),
        top_p=float(options.get("top_p", 1)),
        min_p=float(options.get("min_p", 0)),
        repeat_penalty=float(options.get("repetition_penalty", 1)),
        seed=int(options.get("seed", 0)) + index,
    )


def _warn_of_cuts(n_cut: Sequence[int]) -> None:
    if any(n_cut):
        _log.warning("%d of %d contexts do not fit and lost their start", sum(n > 0 for n in n_cut), len(n_cut))
