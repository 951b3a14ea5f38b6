"""``lamella serve smollm2`` and nothing more, as a newcomer types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import OpenAI

from lamella import api
from lamella.api import preparing
from lamella.doctor.selfcheck import need_of
from lamella.store.store import Store
from tests.cli.programs import SERVED, served

pytestmark = pytest.mark.slow
FEW_TOKENS = (2, 8)
"""The choice for this model takes minutes of probing."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "calibration_size", lambda _: FEW_TOKENS)
        for engine in (SERVED, None):
            api.prepare("smollm2", folder, engine=engine)
    return folder


def test_its_variants_are_no_larger_than_the_file_and_share_layers(cache: Path) -> None:
    ready = api.find_ready("smollm2", cache)
    assert ready is not None
    source, store = api.load("smollm2").spec, Store.open(ready.folder(cache))
    sizes = [store.variant(name).plan.bytes.weights for name in ready.variants]
    assert len(sizes) == 4
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= source.n_bytes
    assert store.usage().joint_bytes < sum(sizes)
    assert 0.5 < store.usage().joint_bytes / need_of("smollm2").store_bytes < 1  # as the doctor says
    assert ready.store.startswith("smollm2-")


def test_it_is_measured_once_and_then_served_at_once_and_answers(cache: Path) -> None:
    with served(cache, "smollm2") as (_, said):
        assert "measured once on this machine" in said[0]
    with served(cache, "smollm2") as (url, said), OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert said == []
        assert client.models.list().data[0].id == "smollm2"
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0
        )
        assert answer.choices[0].message.content
