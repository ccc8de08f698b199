"""Metrics of a store in Prometheus' text format: counts, bytes, latencies and the state of each tier. No path, address or password."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "skipstone_memo_"
_HELP = {
    "lookups_total": ("counter", "Look-ups in a tier, by kind of value and result."),
    "values_total": ("counter", "Values asked for, by kind: reused from a tier, or computed."),
    "saved_seconds": ("gauge", "Seconds that computing the reused values took when they were computed, less what finding them took."),
    "computing_seconds_total": ("counter", "Seconds spent computing values that were in no tier."),
    "not_kept_total": ("counter", "Values, or copies of one in a tier, that were not kept."),
    "read_seconds": ("histogram", "Time that a run waited for a read of a tier, hit, miss or failure."),
    "write_seconds": ("histogram", "Time that a write to a tier took in the background."),
    "read_bytes_total": ("counter", "Bytes of entries read from a tier."),
    "written_bytes_total": ("counter", "Bytes of entries written to a tier."),
    "failures_total": ("counter", "Operations of a tier that failed or were abandoned."),
    "up": ("gauge", "1 while a tier is read from, 0 while reads are suspended after a failure or it is not connected yet."),
    "abandoned_reads": ("gauge", "Threads that run a read for which no run waits any longer."),
    "waiting_bytes": ("gauge", "Bytes of writes that are queued, or held until the tier can be reached."),
    "entries": ("gauge", "Entries held in memory."),
    "bytes": ("gauge", "Bytes held in memory."),
    "budget_bytes": ("gauge", "Bytes that a tier may hold at most."),
}  # fmt: skip


def text(store: Store) -> str:
    """All metrics of a store. Of the tiers, only memory is asked for its contents."""
    found: dict[str, list[str]] = {name: [] for name in _HELP}
    for name, labels, value in _samples(store):
        family = next((n for n in _HELP if name == n or name.removeprefix(f"{n}_") in ("bucket", "sum", "count")), name)
        found[family].append(f"{_PREFIX}{name}{_labels(labels)} {value:.10g}")
    lines = []
    for name, samples in found.items():
        if samples:
            kind, about = _HELP[name]
            lines += [f"# HELP {_PREFIX}{name} {about}", f"# TYPE {_PREFIX}{name} {kind}", *samples]
    return "\n".join(lines) + "\n"


def _samples(store: Store) -> Iterator[tuple[str, dict[str, str], float]]:
    yield from store.stats.samples()
    for name, tier in store.tiers.items():
        yield from store.metrics[name].samples(name)
        yield "up", {"tier": name}, int(store.serves(name))
        budget = getattr(tier, "budget", None)
        if budget is not None:
            yield "budget_bytes", {"tier": name}, budget
    yield from store.state_samples()


def _labels(labels: Mapping[str, str]) -> str:
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
