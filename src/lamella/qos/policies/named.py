"""Policies by name: ``static`` (the best), ``static:VARIANT``, ``threshold``, ``predictive``."""

from __future__ import annotations

from lamella.core.errors import InvalidRequest
from lamella.qos.policies.decision import Policy
from lamella.qos.policies.predictive import Predictive
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.policies.threshold import Threshold

DEFAULT_POLICY = "predictive"
KNOWN = ("static", "static:VARIANT", "threshold", "predictive")


def named_policy(name: str, setting: Setting) -> Policy:
    """The policy of that name.

    Raises:
        InvalidRequest: there is none; lists those there are.
        UnknownVariant: ``static`` of a variant that the profile has not.
    """
    check_policy_name(name)
    if name.partition(":")[0] == "static":
        return Static(setting.rung(static_variant(name) or setting.rungs[0].name).name)
    if name == "threshold":
        return Threshold(setting)
    return Predictive(setting)


def static_variant(name: str) -> str | None:
    """The variant that a ``static`` policy names; None where none is named."""
    kind, _, variant = name.partition(":")
    return variant if kind == "static" and variant else None


def check_policy_name(name: str) -> None:
    """Refuse a name that no policy has; whether a ``static`` one's variant is there, only its profile says.

    Raises:
        InvalidRequest: lists the policies there are.
    """
    if name not in ("threshold", "predictive") and name.partition(":")[0] != "static":
        raise InvalidRequest(f"no policy '{name}'; there are: {', '.join(KNOWN)}, and oracle in simulations")
