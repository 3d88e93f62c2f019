"""A client of OpenAI-compatible chat endpoints: text only, within a rate, with back-off (by `openai`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from his2lip.config import Config
from his2lip.errors import His2lipError, RunError, first_line, redact
from his2lip.files import printable

URL, KEY, MODEL = "OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"
_OF_THE_TEXT = ("content_filter", "context_length_exceeded")  # error codes that concern one request only
HOSTED = "https://api.openai.com/v1"


class EndpointError(RunError):
    """An endpoint that cannot be used at all: a wrong address, key or model name, or nothing that answers."""


class Endpoint(Config):
    """A chat endpoint and how it is asked."""

    url: str
    """Base URL, such as http://127.0.0.1:8000/v1 of vLLM."""
    model: str
    key: str = Field(repr=False)
    """The API key; it is sent to the endpoint only, and stored nowhere."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests at a time."""
    per_minute: float = Field(default=60.0, gt=0)
    """Requests per minute, those that are tried again included."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds to wait for an answer before it is tried again."""
    retries: int = Field(default=6, ge=0, le=20)
    """Times that a request is tried again, after 0.5, 1, 2, … 8 s, or when the server's Retry-After says."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Null: the endpoint's own; some models accept no other."""


@dataclass(frozen=True)
class Completion:
    """What an endpoint answered.

    text    of the first choice; empty where there is none
    ended   `stop`, `length` (cut off), `content_filter`, …
    model   the name that the endpoint gives itself
    time    when the answer came, seconds since 1970
    """

    text: str
    ended: str
    model: str
    tokens_in: int
    tokens_out: int
    time: float


def endpoint_from(
    environment: Mapping[str, str] = os.environ,
    *,
    url: str | None = None,
    model: str | None = None,
    **how: Any,
) -> Endpoint:
    """The endpoint of `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `OPENAI_MODEL`; arguments win.

    Without a key, a local server is asked without one. Raises EndpointError where the model is not named, or
    where a hosted endpoint has no key.
    """
    url = url or environment.get(URL) or HOSTED
    model = model or environment.get(MODEL)
    if not model:
        raise EndpointError("no model is named", key=MODEL, fix=f"set {MODEL}, or give --model")
    key = environment.get(KEY, "")
    if not key and url.startswith("https://"):
        raise EndpointError("there is no API key", where=redact(url), key=KEY, fix=f"set {KEY}")
    return Endpoint(url=url, model=model, key=key or "none", **how)


class Chat:
    """Asks an endpoint, within its rate. To be used with `async with`, in one event loop.

    The caller limits the requests at a time to `endpoint.concurrency`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.requests = 0  # HTTP requests, those that were tried again included
        self._answered = False  # whether any request has succeeded: then address, model and options are right
        self._next = 0.0  # when the next request may leave, by the monotonic clock

    async def __aenter__(self) -> Chat:
        import openai

        at = self.endpoint
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._wait_for_turn]})
        self._client = openai.AsyncOpenAI(
            base_url=at.url, api_key=at.key, timeout=at.timeout_s, max_retries=at.retries, http_client=http
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(self, instruction: str, question: str) -> Completion:
        """Sends two texts and returns the answer.

        Raises EndpointError where no request can succeed, and RunError where this one did not, also after it
        was tried again.
        """
        import openai

        options: dict[str, Any] = {}
        if self.endpoint.temperature is not None:
            options["temperature"] = self.endpoint.temperature
        try:
            got = await self._client.chat.completions.create(
                model=self.endpoint.model,
                messages=[
                    {"role": "system", "content": instruction},
                    {"role": "user", "content": question},
                ],
                **options,
            )
        except openai.APIError as error:
            raise self._error(error) from None
        self._answered = True
        try:
            choice, usage = got.choices[0], got.usage
            text, ended = choice.message.content or "", choice.finish_reason or "stop"
            if getattr(choice.message, "refusal", None):
                ended = "refusal"
            told = printable(str(got.model or self.endpoint.model))
            text = printable(text)
        except (AttributeError, IndexError, TypeError):
            return Completion("", "not a chat completion", self.endpoint.model, 0, 0, time.time())
        sent, received = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        return Completion(text, ended, told, sent, received, time.time())

    async def _wait_for_turn(self, request: object) -> None:
        """Spaces the requests evenly over the minute, those that the client tries again too."""
        self.requests += 1
        now = time.monotonic()
        turn = max(self._next, now)
        self._next = turn + 60.0 / self.endpoint.per_minute
        await asyncio.sleep(turn - now)

    def _error(self, error: Exception) -> His2lipError:
        import openai

        where, told = redact(self.endpoint.url), first_line(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return EndpointError(
                f"the endpoint refuses the key: {told}", where=where, key=KEY, fix=f"set {KEY}"
            )
        refused = isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
        if refused and (self._answered or getattr(error, "code", None) in _OF_THE_TEXT):
            return RunError(f"the endpoint refuses this request: {told}", where=where, key=MODEL)
        if refused or isinstance(error, openai.NotFoundError):
            fix = "check the address (it ends in /v1), the name of the model and the temperature"
            return EndpointError(f"the endpoint refuses the request: {told}", where=where, key=MODEL, fix=fix)
        return RunError(f"no answer: {told}", where=where, key=URL, fix="the same command asks again")


def _count(usage: object, name: str) -> int:
    """Tokens as the endpoint counted them; 0 where it does not say."""
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value >= 0 else 0
