"""What a server's dashboard shows that its front cannot know: the profile that was kept of its variants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamella.api.profiles import find_profile
from lamella.core.errors import LamellaError
from lamella.dashboard.state import Measured
from lamella.dashboard.steering import measured_in

if TYPE_CHECKING:
    from lamella.batching.settings import EngineSettings


def measured_variants(settings: EngineSettings, cache_folder: Path) -> dict[str, Measured]:
    """By variant, what ``lamella profile`` kept of this engine on this machine; empty where nothing was measured."""
    try:
        return measured_in(find_profile(settings, cache_folder))
    except LamellaError:  # a page without measured points is no reason to serve nothing
        return {}
