"""Text can be read in both themes: at least 4.5 to 1 (WCAG 2.2, 1.4.3), by the colours of the style sheet."""

from __future__ import annotations

import re

import pytest

from lamella.dashboard.assets import asset

SHEET = asset("page.css").body.decode()
TEXTS = ["text", "quiet", "good", "bad", "accent", "series-1", "series-2", "series-3", "objective"]


def colours(selector: str) -> dict[str, str]:
    """The custom properties of the rule with this selector."""
    rules = re.findall(re.escape(selector) + r" \{(.*?)\}", SHEET, re.DOTALL)
    return {name: value for rule in rules for name, value in re.findall(r"--([\w-]+): (#\w{6});", rule)}


LIGHT = colours(":root")
DARK = LIGHT | colours(':root[data-theme="dark"]')


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(theme: dict[str, str]) -> None:
    pairs = [(text, ground) for text in TEXTS for ground in ("page", "card")]
    pairs += [("text", "notice"), ("on-accent", "accent")]
    pairs += [("on-bits", name) for name in theme if re.fullmatch(r"bits-\d+", name)]
    poor = {pair: round(contrast(*(theme[name] for name in pair)), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in poor.items() if ratio < 4.5} == {}
    assert len(pairs) == 2 * len(TEXTS) + 2 + 7


def test_the_systems_dark_theme_is_the_chosen_one() -> None:
    assert colours(':root:not([data-theme="light"])') == colours(':root[data-theme="dark"]')
    assert LIGHT != DARK
