"""Who an encoder is: everything but its input that decides which bits it computes.

Its weights as they were loaded, what patches them, how it is built, the source of its classes, and the settings and the
machine that it runs with. Not the names of files: the same file has other names elsewhere, and another the same name.
Where something takes part that is not understood, that is NotCacheable: what cannot be named is not kept. Not noticed: weights that
somebody writes to in place, around ComfyUI's patches, after they were first read.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import psutil
import torch
from torch import Tensor

from ...core.memo.errors import NotCacheable
from ...core.memo.keys import digest

WHOLE = 384 << 20  # bytes of weights that are read in full: every VAE, CLIP-L; about a tenth of a second
HOOKS = "hooks on the CLIP"
RUNS, RUN = 32, 64  # of each weight of a larger encoder: so many places, so many elements at each

# what loading, moving and running an encoder changes, and what it computes does not depend on
_STATE = {
    "training", "device", "execution_device", "can_assign_sd", "model_loaded_weight_memory", "model_offload_buffer_memory",
    "model_lowvram", "lowvram_patch_counter", "current_weight_patches_uuid", "current_patcher", "weight_function", "bias_function",
    "weight_lowvram_function", "bias_lowvram_function", "pin_failed", "seed_key", "skip_injection", "logged_once",
    "last_token_tags",
}  # fmt: skip
_STATES = ("_", "comfy_", "prev_comfy_", "dynamic_")  # and names that begin so
_BUILT = {"_full_precision_mm_config"}  # but for these, and for methods that somebody put in place
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# of a VAE: where it runs is among the settings, how much memory it needs changes no bits
_NOT_OF_A_VAE = {
    "first_stage_model",
    "patcher",
    "device",
    "output_device",
    "size",
    "memory_used_encode",
    "memory_used_decode",
    "skipstone_decode",
}
# ComfyUI's own options that change no bits: addresses, folders, logs, what is kept, which of the devices (their kind is told
# apart), how memory is had and moved
_HARMLESS = {
    "listen", "port", "tls_keyfile", "tls_certfile", "enable_cors_header", "max_upload_size", "base_directory",
    "extra_model_paths_config", "output_directory", "temp_directory", "input_directory", "user_directory", "models_directory",
    "auto_launch", "disable_auto_launch", "preview_method", "preview_size", "cache_ram", "cache_classic", "cache_lru", "cache_none",
    "enable_manager", "disable_manager_ui", "enable_manager_legacy_ui", "dont_print_server", "quick_test_for_ci", "debug_hang",
    "windows_standalone_build", "disable_metadata", "disable_all_custom_nodes", "whitelist_custom_nodes", "disable_api_nodes",
    "multi_user", "verbose", "log_stdout", "front_end_version", "front_end_root", "enable_compress_response_body", "comfy_api_base",
    "database_url", "enable_assets", "enable_asset_hashing", "feature_flag", "list_feature_flags", "default_hashing_function",
    "mmap_torch_files", "disable_mmap", "fast_disk", "disable_assets_autoscan",
    "cuda_malloc", "disable_cuda_malloc", "cuda_device", "default_device", "oneapi_device_selector", "reserve_vram",
    "vram_headroom", "disable_nvml_pressure", "async_offload", "disable_async_offload", "disable_pinned_memory",
    "force_non_blocking", "disable_smart_memory",
}  # fmt: skip
# the code that every encoder runs through
_SOURCES = (
    "comfy.sd",
    "comfy.sd1_clip",
    "comfy.ops",
    "comfy.utils",
    "comfy.lora",
    "comfy.model_patcher",
    "comfy.ldm.modules.attention",
)
_DEPTH = 6
_CONSTANTS = {type(None), bool, int, float, str}
_METHODS = (types.FunctionType, types.MethodType, partial)
_VERSIONED = {"builtins", "torch", *sys.stdlib_module_names}

_bases: WeakKeyDictionary[Any, tuple[object, Identity]] = (
    WeakKeyDictionary()
)  # by module; of the weights as they were loaded
_patched: WeakKeyDictionary[Any, tuple[object, str]] = WeakKeyDictionary()  # by patcher


@dataclass(frozen=True)
class Identity:
    """digest: equal for encoders that compute the same. sources: modules (by name) whose code it is made of, and their digests.

    bent: a method of its modules was replaced in place: its loader alone does not make such a one.
    """

    digest: str
    sources: dict[str, str]
    bent: bool = False


def of_vae(vae: Any) -> Identity:
    """A comfy VAE's. Raises NotCacheable, with the reason as a short phrase."""
    with _or_refused("a VAE"):
        module = vae.first_stage_model
        if module is not vae.patcher.model:
            raise NotCacheable("a VAE whose model is not its patcher's")
        how = {n: _described(v, 0) for n, v in vars(vae).items() if n not in _NOT_OF_A_VAE and n[0] != "_"}
        where = [str(vae.vae_output_dtype()), vae.device.type, vae.output_device.type]
        return _identity(vae.patcher, module, [_class(_comfys(type(vae))), how, where])


def of_clip(clip: Any) -> Identity:
    """A comfy CLIP's, without its tokenizer: tokens are input. Raises NotCacheable, with the reason as a short phrase."""
    with _or_refused("a CLIP"):
        module = clip.cond_stage_model
        if module is not clip.patcher.model:
            raise NotCacheable("a CLIP whose model is not its patcher's")
        module.reset_clip_options()  # as every encoding begins
        return _identity(clip.patcher, module, [_class(_comfys(type(clip))), clip.layer_idx])


@contextmanager
def _or_refused(what: str) -> Iterator[None]:
    """Whatever another version of ComfyUI, another pack's encoder or a strange class of weights says."""
    try:
        yield
    except NotCacheable:
        raise
    except Exception as error:
        raise NotCacheable(f"{what} that is not understood ({type(error).__name__})") from error


def _comfys(kind: type) -> type:
    """The class below ours."""
    return next(c for c in kind.__mro__ if c.__module__.split(".")[0] != __name__.split(".")[0])


def _identity(patcher: Any, module: Any, about: list[Any]) -> Identity:
    seen = _seen(module)
    if module not in _bases or _bases[module][0] != seen:
        _bases[module] = seen, _base(patcher, module)
    base = _bases[module][1]
    return replace(base, digest=digest(base.digest, _patches(patcher), about, settings(patcher.load_device)))


def _seen(module: Any) -> object:
    """By which a module is known to be built as it was: cheap, good in this process alone, and keeps nothing alive."""
    return [
        (ref(part), type(part), [(name, _glance(value)) for name, value in vars(part).items() if _tells(name, value)])
        for part in module.modules()
    ]


def _glance(value: Any) -> object:
    if type(value) in _CONSTANTS:
        return value
    if isinstance(value, tuple | list):
        return [_glance(v) for v in value]
    if isinstance(value, _METHODS):
        return _described(value, 0)
    try:
        return ref(value)  # an id may be another's later
    except TypeError:
        return type(value), id(value)


def _base(patcher: Any, module: Any) -> Identity:
    """How a module is built and what weights it has, patches aside; and the source files of its classes."""
    parts = dict(module.named_modules())
    if any(_filled(getattr(part, hooks, None)) for part in parts.values() for hooks in _HOOKS):
        raise NotCacheable("a hook on a module of the encoder")
    built = [[name, _name_of(type(part)), _attributes(part, 0)] for name, part in parts.items()]
    classes = sorted({c for part in parts.values() for c in type(part).__mro__}, key=_name_of)
    sources = {name: source for name in (*_SOURCES, *(c.__module__ for c in classes)) if (source := source_of(name))}
    bent = any(
        isinstance(v, _METHODS) and hasattr(type(part), n) for part in parts.values() for n, v in vars(part).items()
    )
    return Identity(
        digest(built, [_class(c) for c in classes], sources, _read(as_loaded(patcher, module))), sources, bent
    )


# weights


def originals(patcher: Any) -> dict[str, Tensor]:
    """Of the weights that are patched in place at present: as they were loaded, by name. patcher: a comfy ModelPatcher."""
    loaded = getattr(patcher.model, "current_patcher", None) or patcher
    kept: dict[str, Tensor] = {}
    for holder in (patcher, loaded):
        for name, (weight, _) in getattr(holder, "hook_backup", {}).items():
            kept[name] = weight
    for holder in (patcher, loaded):  # from before any hook
        for name, backup in getattr(holder, "backup", {}).items():
            kept[name] = backup.weight
    return kept


def as_loaded(patcher: Any, module: Any) -> Iterator[tuple[str, Tensor]]:
    """A patcher's weights and buffers by name, whatever is patched and wherever it lies."""
    kept = originals(patcher)
    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        yield name, kept.get(name, weight)


def _read(weights: Iterable[tuple[str, Any]]) -> str:
    """A digest of named weights: of all of them, or of samples where that would take long."""
    parts = [(name, *part) for name, weight in weights for part in stored_parts(weight)]
    size = sum(part.nbytes for _, _, part in parts)
    if size > WHOLE:
        parts = [(name, [*about, str(list(part.shape))], _sample(part)) for name, about, part in parts]
    return digest(parts)


def stored_parts(weight: Any) -> Iterator[tuple[list[str], Tensor]]:
    """Plain tensors that a weight is made of, each with a few words about it: itself, or a quantized weight's data and scales, which are
    not dequantized. Raises NotCacheable for another class."""
    if type(weight) in (Tensor, torch.nn.Parameter):
        yield [], weight.detach()
        return
    # a Parameter of quantized data is of the data's class
    made = weight.state_dict("") if hasattr(weight, "state_dict") else None
    if not isinstance(made, dict):
        raise NotCacheable(f"weights of class {type(weight).__name__}")
    for name, part in made.items():
        yield [_name_of(type(weight)), str(weight.dtype), str(list(weight.shape)), str(name)], part.detach()


def _sample(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    if flat.numel() <= RUNS * RUN:
        return flat
    each = flat.numel() // RUNS
    # the last row of an embedding, a token that was added, is at the end
    return torch.cat([flat[: RUNS * each].view(RUNS, each)[:, :RUN].reshape(-1), flat[-RUN:]])


# patches


def _patches(patcher: Any) -> str:
    """What is done to the weights: LoRAs with their strengths and what ComfyUI sets. Raises NotCacheable for what else can be done."""
    _refuse_unknown(patcher)
    # a clone has its original's uuid until it is patched itself
    seen = (patcher.patches_uuid, sum(map(len, patcher.patches.values())))
    if patcher not in _patched or _patched[patcher][0] != seen:
        _patched[patcher] = seen, _digest_of(patcher.patches)
    rest = [_plain(patcher.object_patches), _plain(patcher.model_options), patcher.force_cast_weights]
    return digest(_patched[patcher][1], rest)


def _refuse_unknown(patcher: Any) -> None:
    for name, reason in (
        ("forced_hooks", HOOKS),
        ("hook_patches", HOOKS),
        ("injections", "something injected into the encoder, such as a bypass LoRA"),
        ("additional_models", "another model attached to the encoder"),
        ("weight_wrapper_patches", "wrapped weights"),
        ("wrappers", "wrappers of the encoder"),
        ("callbacks", "callbacks of the encoder"),
    ):
        if _filled(getattr(patcher, name, None)):
            raise NotCacheable(reason)


def _filled(value: Any) -> bool:
    """Wrappers are dicts of dicts of lists, which may all be empty."""
    if isinstance(value, dict):
        return any(_filled(v) for v in value.values())
    return bool(value)


def _digest_of(patches: dict[str, list[Any]]) -> str:
    tensors: list[tuple[str, Tensor]] = []
    told = [[str(key), [_patch(part, tensors, 0) for part in patches[key]]] for key in sorted(patches, key=str)]
    return digest(told, _read(tensors))


def _patch(part: Any, tensors: list[tuple[str, Tensor]], depth: int) -> Any:
    """A patch as plain data; its tensors go to `tensors`, and leave a number."""
    if isinstance(part, Tensor):
        tensors.append((str(len(tensors)), part))
        return ["tensor", len(tensors)]
    if part is None or type(part) in (bool, int, float, str):
        return part
    if depth > _DEPTH:
        raise NotCacheable("a patch that is nested too deep")
    if isinstance(part, tuple | list):
        return [_patch(p, tensors, depth + 1) for p in part]
    if isinstance(part, dict):
        return [[str(name), _patch(part[name], tensors, depth + 1)] for name in sorted(part, key=str)]
    if hasattr(part, "weights"):  # comfy.weight_adapter: LoRA, LoHa ...
        return [_name_of(type(part)), _patch(part.weights, tensors, depth + 1)]
    raise NotCacheable(f"a patch of class {type(part).__name__}")


def tensors_of(patch: Any) -> list[Tensor]:
    """The tensors of a weight patch: a LoRA adapter, or a tuple of ComfyUI's older kind."""
    if isinstance(patch, Tensor):
        return [patch]
    parts = getattr(patch, "weights", patch)
    return [t for p in parts for t in tensors_of(p)] if isinstance(parts, tuple | list) else []


def _plain(value: Any) -> Any:
    """For digest(): what are no objects, and NotCacheable for those that are."""
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if callable(value):
        raise NotCacheable("a function patched into the encoder")
    return value


# how it is built


def _attributes(part: Any, depth: int) -> dict[str, Any]:
    try:
        held = vars(part)
    except TypeError:  # no __dict__
        return {}
    return {name: _described(value, depth) for name, value in held.items() if _tells(name, value)}


def _tells(name: str, value: Any) -> bool:
    """Whether an attribute says how a thing is built."""
    if name in _HOOKS:
        return bool(value)
    return name in _BUILT or isinstance(value, _METHODS) or not _is_state(name)


@lru_cache(maxsize=4096)
def _is_state(name: str) -> bool:
    return name in _STATE or name.startswith(_STATES)


def _class(kind: type) -> Any:
    """A class by its name, as far as its source file tells the rest; by their code those methods that are not from that file."""
    own = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__.split(".")[0] in _VERSIONED or not own:
        return _name_of(kind)
    methods = {name: value for name, value in vars(kind).items() if isinstance(value, types.FunctionType)}
    return [_name_of(kind), {n: _function(f, 0) for n, f in methods.items() if f.__code__.co_filename != own}]


def _described(value: Any, depth: int) -> Any:
    """Any Python value as far as it can be told: plain data, functions by their code, objects by class and attributes."""
    if type(value) in _CONSTANTS or type(value) is bytes:
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, torch.device | torch.nn.Module):
        return type(value).__name__  # devices are among the settings, modules have entries of their own
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), _sample(value.detach())]
    if depth > _DEPTH:
        return _name_of(type(value))
    if isinstance(value, dict):
        return [[str(k), _described(v, depth + 1)] for k, v in value.items()]
    if isinstance(value, list | tuple):
        return [_described(v, depth + 1) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(v) for v in value)
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return _name_of(value)
    if isinstance(value, types.MethodType):
        return _described(value.__func__, depth + 1)
    if isinstance(value, types.FunctionType):
        return _function(value, depth)
    if isinstance(value, partial):
        return [_described(part, depth + 1) for part in (value.func, value.args, value.keywords)]
    return [_name_of(type(value)), _attributes(value, depth + 1)]


def _function(function: Callable[..., Any], depth: int) -> Any:
    code = function.__code__
    cells = [c.cell_contents for c in function.__closure__ or ()]
    held = _described([*cells, function.__defaults__], depth + 1)
    return [_name_of(function), _code(code), held]


@lru_cache(maxsize=1024)
def _code(code: types.CodeType) -> list[Any]:
    constants = [
        _code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts if not isinstance(c, str)
    ]
    return [code.co_code, list(code.co_names), constants]


def _name_of(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', getattr(thing, '__name__', ''))}"


def source_of(module: str) -> str:
    """A digest of the module's source file; "" where it has none, and for torch and Python, which are told by their versions."""
    if module.split(".")[0] in _VERSIONED:
        return ""
    file = getattr(sys.modules.get(module), "__file__", None)
    return _file(file) if file else ""


@lru_cache(maxsize=1024)
def _file(path: str) -> str:
    """As it was when first looked at: Python, too, does not look twice."""
    try:
        about = os.stat(path)
        if max(about.st_mtime, about.st_ctime) > began():
            raise NotCacheable("code that changed since ComfyUI was started")
        return digest(Path(path).read_bytes())
    except OSError as error:
        raise NotCacheable("an encoder without source code") from error


@lru_cache(maxsize=1)
def began() -> float:
    """When this process did, in seconds since 1970."""
    return min(psutil.Process().create_time(), time.time())


# where it runs


def settings(device: torch.device) -> str:
    """Versions, ComfyUI's options, the kind of device, and torch's own switches: what else changes bits."""
    from comfy import model_management
    from comfy.cli_args import args
    from comfy.ldm.modules import attention

    options = {name: _option(value) for name, value in vars(args).items() if name not in _HARMLESS}
    attentions = [
        _name_of(getattr(attention, name, None)) for name in ("optimized_attention", "optimized_attention_masked")
    ]
    vaes = [bool(model_management.xformers_enabled_vae()), bool(model_management.pytorch_attention_enabled_vae())]
    dtypes = [str(model_management.intermediate_dtype()), str(model_management.intermediate_device().type)]
    return digest(versions(), options, attentions, vaes, dtypes, _machine(device), _switches(device))


def _option(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


@lru_cache(maxsize=1)
def versions() -> list[str]:
    """Of ComfyUI and of what computes."""
    comfyui = import_module("comfyui_version").__version__
    return [str(comfyui), str(torch.__version__), str(torch.backends.cudnn.version())]


@lru_cache(maxsize=8)
def _machine(device: torch.device) -> list[str]:
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        return ["cuda", about.name, f"{about.major}.{about.minor}"]
    if device.type == "cpu":
        return ["cpu", torch.backends.cpu.get_cpu_capability()]
    return [device.type, platform.platform()]


def _precision(read: Callable[[], Any], *backends: str) -> Any:
    """How float32 is multiplied. Once the names of torch 2.9 have been set, reading by the older ones raises."""
    try:
        return read()
    except RuntimeError:
        named = {name: attrgetter(f"{name}.fp32_precision") for name in backends}
        values = {name: str(get(torch.backends)) for name, get in named.items()}
        return {"": str(getattr(torch.backends, "fp32_precision", "")), **values}


def _switches(device: torch.device) -> list[Any]:
    cuda = torch.backends.cuda
    return [
        _precision(torch.get_float32_matmul_precision, "cuda.matmul", "mkldnn.matmul"),
        _precision(lambda: torch.backends.cudnn.allow_tf32, "cudnn", "cudnn.conv", "cudnn.rnn"),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.deterministic,
        str(getattr(cuda.matmul, "allow_fp16_accumulation", None)),
        str(cuda.matmul.allow_fp16_reduced_precision_reduction),
        str(cuda.matmul.allow_bf16_reduced_precision_reduction),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        torch.get_num_threads() if device.type == "cpu" else 0,  # sums are split among them
    ]
