"""The encode cache of this process and its settings, from the environment or ComfyUI's settings; the environment takes precedence.

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
    SKIPSTONE_MEMO_S3_MB        (none)                       largest entry sent to S3                        256
    SKIPSTONE_MEMO_READ_ONLY    (none)                       read Redis and S3, never write to them          off
    SKIPSTONE_MEMO_NAMESPACE    (none)                       keeps a team's entries in both apart            none
    SKIPSTONE_MEMO_KEY          (none)                       signs entries in both; others are misses        none
    SKIPSTONE_METRICS           (none)                       /skipstone/metrics, for Prometheus              off
    SKIPSTONE_PROVIDER          Skipstone.Provider           also keep what ComfyUI's own nodes return       off

None of them is a widget, because workflows come from strangers. With --multi-user, the settings belong to the users and not to the
machine's owner, so only the environment is read. An invalid value is logged once and the default is used. Every page can read the settings,
so an address with a password is accepted from the environment alone. Changes apply after a restart.
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
DISK_SECONDS, SHARED_SECONDS = (
    5.0,
    0.03,
)  # for which the first call of opened() waits for the disk tier and for shared tiers
LARGEST = 4 << 20  # bytes of the largest settings file that is read
_YES, _NO = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}

log = logging.getLogger(__name__)
_lock = threading.Lock()
_store: list[Store | None] = []  # empty until it is first needed
_in_force: dict[str, Any] = {}  # settings that were read when the store or the provider was made


def opened() -> Store | None:
    """The encode cache of this process, opened by the first call. None if it is switched off. Never raises."""
    if not _store:
        with _lock:
            if not _store:
                _store.append(_open())
    return _store[0]


def set_store(store: Store | None) -> None:
    """Replace the store of this process, for tests and benchmarks. The caller closes it."""
    with _lock:
        _store[:] = [store]


def reset() -> None:
    """Close the store. The next call of opened() opens one by the settings of that time."""
    with _lock:
        if _store and _store[0] is not None:
            _store[0].close()
        _store.clear()
        _in_force.pop("memo", None)


def provider_wanted() -> bool:
    """Whether results of ComfyUI's own nodes are to be cached."""
    _in_force["provider"] = _provider(SettingsReader())
    return bool(_in_force["provider"])


def metrics_wanted() -> bool:
    """Whether /skipstone/metrics is to be served. Read from the environment alone, because everybody who reaches the server sees it."""
    return _is_on(os.environ.get("SKIPSTONE_METRICS", ""))


def settings_status() -> dict[str, Any]:
    """How the settings relate to those in force. Opens and logs nothing.

    `changed`: whether a restart is needed to apply them. `environment`: names of settings that environment variables override.
    `several_users`: whether settings are ignored because of --multi-user.
    """
    from comfy.cli_args import args

    reader = SettingsReader(quiet=True)
    now = {"memo": _configured(reader), "provider": _provider(reader)}
    return {
        "changed": any(now[name] != value for name, value in _in_force.items()),
        "environment": sorted(reader.overridden),
        "several_users": bool(getattr(args, "multi_user", False)),
    }


class SettingsReader:
    """Reads settings from the environment and from ComfyUI's settings file. Values are as text or JSON has them.

    quiet: log nothing. overridden: names of settings that were asked for and that the environment sets.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._file = _settings_file()
        self._quiet = quiet
        self.overridden: set[str] = set()

    def get(self, variable: str, name: str) -> Any:
        """The value of SKIPSTONE_<variable>, or of the setting `name`; None if neither is set."""
        value = os.environ.get(f"SKIPSTONE_{variable}")
        if value is None:
            return self._file.get(name)
        self.overridden.add(name)
        return value

    def get_place(self, variable: str, name: str) -> Any:
        """Like get(), for a folder or an address. Ignores the setting if users of other machines could have changed it."""
        value = self.get(variable, name)
        if value and name not in self.overridden and not _on_loopback():
            self.warn(
                "encode cache: %s is ignored, as this server can be reached from other machines, whose users can change it: "
                "set SKIPSTONE_%s instead",
                name,
                variable,
            )
            return None
        return value

    def warn(self, message: str, *args: Any) -> None:
        """Log a warning, unless quiet."""
        if not self._quiet:
            log.warning(f"[Skipstone] {message}", *args)


def _open() -> Store | None:
    try:
        chosen = _in_force["memo"] = _configured(SettingsReader())
        if chosen is None:
            return None
        store = chosen.open()
        atexit.register(store.close)  # writes what is still queued
        store.ready(DISK_SECONDS, DiskTier.name)
        store.ready(SHARED_SECONDS)
        return store
    except Exception:
        log.exception("[Skipstone] encode cache: cannot be opened; nothing is cached")
        return None


def _configured(reader: SettingsReader) -> Settings | None:
    """The settings, or None if the cache is switched off."""
    settings = _settings(reader)
    return settings if _switch(reader, "MEMO", "Skipstone.Memo", True) else None


def _provider(reader: SettingsReader) -> bool:
    return _switch(reader, "PROVIDER", "Skipstone.Provider", False)


def _settings(reader: SettingsReader) -> Settings:
    usual = Settings()
    chosen: dict[str, Any] = {
        "memory": _number(reader, "MEMO_MEMORY", "Skipstone.Memo.Memory", usual.memory),
        "folder": _folder(reader),
        "disk": _number(reader, "MEMO_DISK", "Skipstone.Memo.Disk", usual.disk),
        "disk_days": _number(reader, "MEMO_DAYS", "Skipstone.Memo.Days", usual.disk_days) or usual.disk_days,
        "redis_days": _number(reader, "MEMO_REDIS_DAYS", "Skipstone.Memo.RedisDays", usual.redis_days)
        or usual.redis_days,
        "redis_entry": _number(reader, "MEMO_REDIS_MB", "Skipstone.Memo.RedisMB", usual.redis_entry)
        or usual.redis_entry,
    }
    # from the environment alone, because every page can read and write the settings
    chosen["read_only"] = _is_on(os.environ.get("SKIPSTONE_MEMO_READ_ONLY", ""))
    chosen["namespace"] = os.environ.get("SKIPSTONE_MEMO_NAMESPACE", "")
    chosen["secret"] = os.environ.get("SKIPSTONE_MEMO_KEY", "")
    chosen["s3_entry"] = _number(reader, "MEMO_S3_MB", "Skipstone.Memo.S3MB", usual.s3_entry) or usual.s3_entry
    address = str(reader.get_place("MEMO_REDIS", "Skipstone.Memo.Redis") or "")
    if with_password(address) and "Skipstone.Memo.Redis" not in reader.overridden:
        reader.warn(
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
        except ValueError as error:  # its message does not repeat the address
            reader.warn("encode cache: %s is not used: %s", place, error)
            del shared[place]
    if not shared:
        chosen["namespace"] = ""  # which may be the invalid part
    return Settings(**chosen, **{name: value for where in shared.values() for name, value in where.items()})


def _folder(reader: SettingsReader) -> Path:
    import folder_paths

    folder = reader.get_place("MEMO_FOLDER", "Skipstone.Memo.Folder")
    return (
        Path(folder).expanduser()
        if isinstance(folder, str) and folder
        else Path(folder_paths.get_user_directory(), *FOLDER)
    )


def _settings_file() -> dict[str, Any]:
    """The settings of ComfyUI's default user; {} if the file cannot be read, or with --multi-user."""
    import folder_paths
    from comfy.cli_args import args

    if getattr(args, "multi_user", False):
        return {}
    path = Path(folder_paths.get_user_directory(), "default", "comfy.settings.json")
    try:
        if path.stat().st_size > LARGEST:
            return {}
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _on_loopback() -> bool:
    """Whether ComfyUI's server can be reached from this machine alone."""
    from comfy.cli_args import args

    hosts = [host.strip() for host in str(getattr(args, "listen", "127.0.0.1")).split(",") if host.strip()]
    return bool(hosts) and all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts)


def _is_on(word: str) -> bool:
    return word.strip().lower() not in _NO


def _switch(reader: SettingsReader, variable: str, name: str, default: bool) -> bool:
    value = reader.get(variable, name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _YES | _NO:
        reader.warn("%s (SKIPSTONE_%s) is on or off, not %.40r", name, variable, value)
        return default
    return word in _YES


def _number(reader: SettingsReader, variable: str, name: str, default: float | None) -> float | None:
    value = reader.get(variable, name)
    if value is None or value == "":
        return default
    try:
        number = float(value)
        if isinstance(value, bool) or not (0 <= number < math.inf):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        reader.warn("%s (SKIPSTONE_%s) is a number from 0 up, not %.40r", name, variable, value)
        return default
