"""The same question at every variant, side by side; then a switch for everybody while an answer is written."""

import os
from concurrent.futures import ThreadPoolExecutor

import httpx
from openai import OpenAI

client = OpenAI()
model, *at_variants = [listed.id for listed in client.models.list()]


def ask(name: str) -> str:
    """One answer, computed by the variant that the name says."""
    answer = client.completions.create(model=name, prompt="The three laws of motion", max_tokens=16, temperature=0)
    return answer.choices[0].text


with ThreadPoolExecutor() as pool:
    for name, text in zip(at_variants, pool.map(ask, at_variants), strict=True):
        print(f"{name}: {text!r}")

admin = httpx.Client(
    base_url=str(client.base_url).removesuffix("/v1/"),
    headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    timeout=60,
)
before = next(v["name"] for v in admin.get("/admin/variants").json()["variants"] if v["running"])
other = next(name.rpartition("@")[2] for name in at_variants if not name.endswith(f"@{before}"))
stream = client.completions.create(model=model, prompt="Once upon a time", max_tokens=40, temperature=0, stream=True)
for number, chunk in enumerate(stream):
    print(chunk.choices[0].text, end="", flush=True)
    if number == 10:
        done = admin.post("/admin/switch", json={"variant": other}).raise_for_status().json()
        print(f" [{done['before']} -> {done['after']} in {done['stall_seconds'] * 1e3:.1f} ms] ", end="", flush=True)
print()
admin.post("/admin/switch", json={"variant": before}).raise_for_status()
