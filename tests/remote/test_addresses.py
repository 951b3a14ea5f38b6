"""What people write for a variant on another machine."""

from __future__ import annotations

import pytest

from lamella.core.errors import InvalidRequest
from lamella.remote.addresses import is_url, split_address


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("http://host:8090/models/tiny", "http://host:8090/models/tiny", None),
        ("http://host:8090/models/tiny@int4", "http://host:8090/models/tiny", "int4"),
        ("http://host@int4", "http://host", "int4"),
        ("http://host/a@b/tiny", "http://host/a@b/tiny", None),
        ("http://me@host/tiny", "http://me@host/tiny", None),
        ("http://me@host/a@b/tiny@int4", "http://me@host/a@b/tiny", "int4"),
        ("http://@int4", "http://@int4", None),  # a user's name without a host, and no variant
    ],
)
def test_a_name_stands_behind_the_last_at_of_the_path(text: str, url: str, name: str | None) -> None:
    assert split_address(text) == (url, name)


def test_an_at_with_nothing_behind_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="names no variant behind the @"):
        split_address("http://host/tiny@")


def test_paths_are_no_urls() -> None:
    assert [is_url(text) for text in ("http://host/m", "hf://org/m", "models/m", "C:/models/m", "m:int4")] == [
        True, True, False, False, False,
    ]  # fmt: skip
