"""A question and an answer.  OPENAI_BASE_URL and OPENAI_API_KEY say where (examples/README.md)."""

from openai import OpenAI

client = OpenAI()
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    max_tokens=40,
    temperature=0,
    logprobs=True,
)
(choice,) = answer.choices
print(choice.message.content)
assert choice.logprobs is not None
for token in (choice.logprobs.content or [])[:5]:
    print(f"{token.token!r:>12} {token.logprob:.3f}")
