"""The one memo of this process, and where its owner says what it may use: the environment, then ComfyUI's settings.

    environment                 comfy.settings.json          meaning                                         default
    SKIPSTONE_MEMO              Skipstone.Memo               on or off                                       on
    SKIPSTONE_MEMO_MEMORY       Skipstone.Memo.Memory        GB in memory; 0: none                           a tenth of the memory
    SKIPSTONE_MEMO_DISK         Skipstone.Memo.Disk          GB on disk; 0: none                             10
    SKIPSTONE_MEMO_DAYS         Skipstone.Memo.Days          days without use after which an entry goes      30
    SKIPSTONE_MEMO_FOLDER       Skipstone.Memo.Folder        folder of the entries                           <user>/skipstone/memo
    SKIPSTONE_MEMO_REDIS        Skipstone.Memo.Redis         redis://, rediss:// or unix:// address          none
    SKIPSTONE_MEMO_REDIS_DAYS   Skipstone.Memo.RedisDays     days without use in Redis                       14
    SKIPSTONE_MEMO_REDIS_MB     Skipstone.Memo.RedisMB       largest entry sent to Redis                     64
    SKIPSTONE_MEMO_S3           (none)                       s3://bucket or s3://bucket/prefix               none
    SKIPSTONE_MEMO_S3_ENDPOINT  (none)                       address of a store that is not Amazon's         Amazon's
    SKIPSTONE_MEMO_S3_REGION    (none)                       region of the bucket                            boto3's
    SKIPSTONE_MEMO_S3_MB        Skipstone.Memo.S3MB          largest entry sent to S3                        256
    SKIPSTONE_MEMO_READ_ONLY    (none)                       read Redis and S3, never write to them          off
    SKIPSTONE_MEMO_NAMESPACE    (none)                       keeps a team's entries in both apart            none
    SKIPSTONE_MEMO_KEY          (none)                       signs entries in both; others are misses        none
    SKIPSTONE_METRICS           (none)                       /skipstone/metrics, for Prometheus              off
    SKIPSTONE_PROVIDER          Skipstone.Provider           also keep what ComfyUI's own nodes return       off

Never a widget: a workflow comes from strangers. With several users (--multi-user) the settings are theirs and not the
owner's, and only the environment counts. A value that makes no sense is said once, and the default taken. Every page can read
the settings: an address with a password is taken from the environment alone. What is changed counts after a restart.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import threading
from pathlib import Path
from typing import Any

from ...core.memo.settings import Settings
from ...core.memo.store import Store
from ...core.memo.tiers.disk import DiskTier
from ...core.memo.tiers.redis_address import with_password

FOLDER = ("skipstone", "memo")
DISK_SECONDS, REDIS_SECONDS = 5.0, 0.03  # that the first who asks waits for a tier to be there
LARGEST = 4 << 20  # bytes of a settings file that is read
_YES, _NO = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}

log = logging.getLogger(__name__)
_lock = threading.Lock()
_held: list[Store | None] = []
_began: dict[str, Any] = {}  # the choices that are in force


def opened() -> Store | None:
    """This process's memo, made when first asked for; None where it is switched off. Never raises."""
    if not _held:
        with _lock:
            if not _held:
                _held.append(_made())
    return _held[0]


def use(store: Store | None) -> None:
    """Take another from now on; for tests and benchmarks. Who made a store closes it."""
    with _lock:
        _held[:] = [store]


def reopen() -> None:
    """Close the memo, and make it anew from the settings when it is next asked for."""
    with _lock:
        if _held and _held[0] is not None:
            _held[0].close()
        _held.clear()
        _began.pop("memo", None)


def provider_wanted() -> bool:
    _began["provider"] = _provider(SettingsReader())
    return bool(_began["provider"])


def metrics_wanted() -> bool:
    """Whether /skipstone/metrics is there: the environment alone decides, as whoever reaches the server can read it."""
    return _is_on(os.environ.get("SKIPSTONE_METRICS", ""))


def standing() -> dict[str, Any]:
    """How what is said now stands to what is in force: `changed`, so that ComfyUI is to be restarted; `environment`, names of settings
    that it overrules; `several_users`, so that no setting counts. Opens nothing, logs nothing.
    """
    from comfy.cli_args import args

    said = SettingsReader(quiet=True)
    now = {"memo": _choices(said), "provider": _provider(said)}
    return {
        "changed": any(now[what] != choice for what, choice in _began.items()),
        "environment": sorted(said.of_environment),
        "several_users": bool(getattr(args, "multi_user", False)),
    }


class SettingsReader:
    """What the machine's owner said, as text or as JSON has it. of_environment: the names asked for that it overrules."""

    def __init__(self, quiet: bool = False) -> None:
        self._file = _settings_file()
        self._quiet = quiet
        self.of_environment: set[str] = set()

    def get(self, variable: str, name: str) -> Any:
        """None where nothing is said."""
        said = os.environ.get(f"SKIPSTONE_{variable}")
        if said is None:
            return self._file.get(name)
        self.of_environment.add(name)
        return said

    def get_place(self, variable: str, name: str) -> Any:
        """As get(), for a folder or an address: from the settings only where nobody but this machine's users can change them."""
        said = self.get(variable, name)
        if said and name not in self.of_environment and not _on_loopback():
            self.complain(
                "encode cache: %s is ignored, as this server can be reached from other machines, whose users can change it: "
                "set SKIPSTONE_%s instead",
                name,
                variable,
            )
            return None
        return said

    def complain(self, what: str, *about: Any) -> None:
        if not self._quiet:
            log.warning(f"[Skipstone] {what}", *about)


def _made() -> Store | None:
    try:
        chosen = _began["memo"] = _choices(SettingsReader())
        if chosen is None:
            return None
        store = chosen.open()
        atexit.register(store.close)  # what waits to be written is written
        store.ready(DISK_SECONDS, DiskTier.name)
        store.ready(REDIS_SECONDS)
        return store
    except Exception:
        log.exception("[Skipstone] encode cache: cannot be opened; nothing is cached")
        return None


def _choices(said: SettingsReader) -> Settings | None:
    """None: switched off."""
    settings = _settings(said)
    return settings if _switch(said, "MEMO", "Skipstone.Memo", True) else None


def _provider(said: SettingsReader) -> bool:
    return _switch(said, "PROVIDER", "Skipstone.Provider", False)


def _settings(said: SettingsReader) -> Settings:
    usual = Settings()
    chosen: dict[str, Any] = {
        "memory": _number(said, "MEMO_MEMORY", "Skipstone.Memo.Memory", usual.memory),
        "folder": _folder(said),
        "disk": _number(said, "MEMO_DISK", "Skipstone.Memo.Disk", usual.disk),
        "disk_days": _number(said, "MEMO_DAYS", "Skipstone.Memo.Days", usual.disk_days) or usual.disk_days,
        "redis_days": _number(said, "MEMO_REDIS_DAYS", "Skipstone.Memo.RedisDays", usual.redis_days)
        or usual.redis_days,
        "redis_entry": _number(said, "MEMO_REDIS_MB", "Skipstone.Memo.RedisMB", usual.redis_entry) or usual.redis_entry,
    }
    # the environment alone: every page can read and write the settings
    chosen["read_only"] = _is_on(os.environ.get("SKIPSTONE_MEMO_READ_ONLY", ""))
    chosen["namespace"] = os.environ.get("SKIPSTONE_MEMO_NAMESPACE", "")
    chosen["secret"] = os.environ.get("SKIPSTONE_MEMO_KEY", "")
    chosen["s3_entry"] = _number(said, "MEMO_S3_MB", "Skipstone.Memo.S3MB", usual.s3_entry) or usual.s3_entry
    address = str(said.get_place("MEMO_REDIS", "Skipstone.Memo.Redis") or "")
    if with_password(address) and "Skipstone.Memo.Redis" not in said.of_environment:
        said.complain(
            "encode cache: Redis is not used: its address holds a password, and every page of this server can read the settings: "
            "give it in SKIPSTONE_MEMO_REDIS instead"
        )
        address = ""
    bucket: dict[str, Any] = {
        n: os.environ.get(f"SKIPSTONE_MEMO_{n.upper()}", "") for n in ("s3", "s3_endpoint", "s3_region")
    }
    shared: dict[str, dict[str, Any]] = {"Redis": {"redis": address}, "S3": bucket} if address or bucket["s3"] else {}
    for place, where in list(shared.items()):
        try:
            Settings(**chosen, **where)
        except ValueError as error:  # which does not repeat the address
            said.complain("encode cache: %s is not used: %s", place, error)
            del shared[place]
    if not shared:
        chosen["namespace"] = ""  # which may be the part that is wrong
    return Settings(**chosen, **{name: value for where in shared.values() for name, value in where.items()})


def _folder(said: SettingsReader) -> Path:
    import folder_paths

    folder = said.get_place("MEMO_FOLDER", "Skipstone.Memo.Folder")
    return (
        Path(folder).expanduser()
        if isinstance(folder, str) and folder
        else Path(folder_paths.get_user_directory(), *FOLDER)
    )


def _settings_file() -> dict[str, Any]:
    """ComfyUI's own, of its default user; {} where there is none that can be read, or where users are strangers."""
    import folder_paths
    from comfy.cli_args import args

    if getattr(args, "multi_user", False):
        return {}
    path = Path(folder_paths.get_user_directory(), "default", "comfy.settings.json")
    try:
        if path.stat().st_size > LARGEST:
            return {}
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _on_loopback() -> bool:
    """Whether ComfyUI's server can be reached from this machine alone."""
    from comfy.cli_args import args

    hosts = [host.strip() for host in str(getattr(args, "listen", "127.0.0.1")).split(",") if host.strip()]
    return bool(hosts) and all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)


def _is_on(word: str) -> bool:
    return word.strip().lower() not in _NO


def _switch(said: SettingsReader, variable: str, name: str, default: bool) -> bool:
    value = said.get(variable, name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _YES | _NO:
        said.complain("%s (SKIPSTONE_%s) is on or off, not %.40r", name, variable, value)
        return default
    return word in _YES


def _number(said: SettingsReader, variable: str, name: str, default: float | None) -> float | None:
    value = said.get(variable, name)
    if value is None or value == "":
        return default
    try:
        number = float(value)
        if isinstance(value, bool) or not (0 <= number < math.inf):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        said.complain("%s (SKIPSTONE_%s) is a number from 0 up, not %.40r", name, variable, value)
        return default
