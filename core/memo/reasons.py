"""Why a value is not cached, as people read it: on a node, in the panel and in Encode Cache Stats. Short phrases for NotCacheable."""

from __future__ import annotations

from typing import Any

from ..texts import Text

_TIERS = {"memory": Text("tier_memory", "memory"), "disk": Text("tier_disk", "disk")}  # others have proper names
_KINDS = {
    kind: Text(f"kind_{kind}", kind)
    for kind in ("vae", "text", "image", "loader", "node", "generated", "vision", "audio")
}
_OF_KIND = Text("uncached_kind", "{kind}: {reason}")

# the value

NESTED = Text("uncached_nested", "nested too deep")
KEYS = Text("uncached_keys", "a dict whose keys are no strings")
CLASS = Text("uncached_class", "something of class {name}")
TENSOR_CLASS = Text("uncached_tensor_class", "a tensor of class {name}")
TENSOR_DTYPE = Text("uncached_tensor_dtype", "a tensor of {dtype}")
NO_PLAIN_TENSOR = Text("uncached_no_plain_tensor", "a tensor that is sparse, quantized, nested or has no data")
NO_TENSOR_BYTES = Text("uncached_no_tensor_bytes", "a tensor whose bytes cannot be had ({error})")
NO_BYTES = Text("uncached_no_bytes", "its bytes cannot be had ({error})")
TOO_MUCH_JSON = Text("uncached_too_much_json", "too much that is no tensor")
NOTHING = Text("uncached_nothing", "nothing")
NOT_FINITE = Text("uncached_not_finite", "NaN or an infinity in it")
TOO_LARGE = Text("uncached_too_large", "larger than {gb} GB")

# a tier

LARGER_THAN = Text("uncached_larger_than", "{tier}: larger than {mb} MB")
LARGER_THAN_BUDGET = Text("uncached_larger_than_budget", "{tier}: larger than its budget")
LARGER_THAN_QUARTER = Text("uncached_larger_than_quarter", "{tier}: larger than a quarter of its limit")
TOO_MANY_WRITES = Text("uncached_too_many_writes", "{tier}: too many writes at once")
NO_WRITES = Text("uncached_no_writes", "{tier}: accepts no writes at present")


def of_kind(kind: str, reason: str | Exception) -> Text:
    """A reason with the kind of its value."""
    return _OF_KIND.of(kind=kind_name(kind), reason=reason)


def kind_name(kind: str) -> str:
    return _KINDS.get(kind, kind)


def in_tier(reason: Text, tier: str, **values: Any) -> Text:
    """A reason of a tier, by the tier's name."""
    return reason.of(tier=tier_name(tier), **values)


def tier_name(tier: str) -> str:
    return _TIERS.get(tier, tier)
