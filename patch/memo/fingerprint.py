"""Fingerprints of encoders: equal for encoders that compute the same from the same input, different for all others.

A fingerprint covers the weights as they were loaded, what patches them, how the encoder is built and what its code is, and the
environment that it runs in (environment.py). It does not cover file names: one file may have several, and one name may come to mean
another file. Whatever cannot be described completely raises NotCacheable, so what is not understood is computed and not kept.

Weights that other code writes to after they were read are noticed by PLACES * SPOT elements of each, which are compared at every look-up.
Not noticed: a later write that changes none of these, such as one to a single row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ...core.memo.errors import NotCacheable
from ...core.memo.keys import digest
from ...core.texts import Text
from . import reasons
from .describe import CONSTANTS, description, lies_where_defined
from .environment import environment_digest
from .modifications import is_foreign

WHOLE = 384 << 20  # bytes of weights that are hashed in full: most VAEs, CLIP-L; about a tenth of a second
RUNS, RUN = 32, 64  # of each weight of a larger encoder: number of samples, elements in each
# places in each weight that are compared at every look-up, and elements at each
PLACES, SPOT = 4, 4
BLOCK = 1021  # int64 values that are summed to one; a prime, so that no row length divides it

# attributes of modules that loading, moving and running an encoder change, and that its results do not depend on
_RUNTIME = {
    *vars(torch.nn.Module()), "device", "execution_device", "can_assign_sd", "model_loaded_weight_memory", "model_offload_buffer_memory",
    "model_lowvram", "lowvram_patch_counter", "current_weight_patches_uuid", "current_patcher", "pin_failed", "seed_key",
    "skip_injection", "logged_once", "last_token_tags", "comfy_cast_weights", "prev_comfy_cast_weights", "comfy_patched_weights",
    "comfy_force_cast_weights", "dynamic_patchers", "dynamic_pins", "dynamic_vbars", "_v", "_v_signature", "_v_weight", "_v_bias",
    "_prefetch", "_pin", "_pin_state", "_seq_len_cached", "_cos_cached", "_sin_cached", "_resident_bank", "_visual_cache",
    "_kv_cache_entries", "_full_precision_mm", "_comfy_hostbuf", "_patcher_finalizer",
    "manual_cast_dtype",  # set while a CLIP is loaded; counts as an object patch
}  # fmt: skip
RUNTIME = frozenset({"device", "output_device", "size", "memory_used_encode", "memory_used_decode", "skipstone_decode"})
"""Attributes of VAEs and CLIPs that change no bits, or are described otherwise."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NOT_OF_A_VAE = {"first_stage_model", "patcher", *RUNTIME}
_NOT_OF_A_CLIP = {
    "cond_stage_model",
    "patcher",
    "tokenizer",
    "tokenizer_options",
    "use_clip_schedule",
    "apply_hooks_to_conds",
}
_DEPTH = 6

_built: WeakKeyDictionary[Any, tuple[object, Identity]] = WeakKeyDictionary()  # by module
_patched: WeakKeyDictionary[Any, tuple[object, str]] = WeakKeyDictionary()  # by patcher


@dataclass(frozen=True)
class Identity:
    """digest: equal for encoders that compute the same.

    modified: something in the encoder was replaced after it was built, or is another pack's, so that its loader alone does not make such
    an encoder.
    """

    digest: str
    modified: bool = False


def of_vae(vae: Any) -> Identity:
    """The fingerprint of a comfy VAE. Raises NotCacheable, with the reason as a short phrase."""
    with _or_refused(reasons.VAE):
        module = vae.first_stage_model
        if module is not vae.patcher.model:
            raise NotCacheable(reasons.OTHER_MODEL.of(what=reasons.VAE))
        parts = {**_names(module), id(vae): "the VAE", id(vae.patcher): "the patcher"}
        how = {n: description(v, parts) for n, v in vars(vae).items() if n not in _NOT_OF_A_VAE}
        where = [str(vae.vae_output_dtype()), vae.device.type, vae.output_device.type]
        own = any(is_foreign(v) for v in vars(vae).values())
        return _identity(vae.patcher, module, [description(_comfys(type(vae))), how, where], own)


def of_clip(clip: Any) -> Identity:
    """The fingerprint of a comfy CLIP without its tokenizer, as tokens are input. Raises NotCacheable as of_vae() does."""
    with _or_refused(reasons.CLIP):
        module = clip.cond_stage_model
        if module is not clip.patcher.model:
            raise NotCacheable(reasons.OTHER_MODEL.of(what=reasons.CLIP))
        module.reset_clip_options()  # as every encoding begins
        parts = {**_names(module), id(clip): "the CLIP", id(clip.patcher): "the patcher"}
        how = {n: description(v, parts) for n, v in vars(clip).items() if n not in _NOT_OF_A_CLIP}
        own = any(is_foreign(v) for v in vars(clip).values())
        return _identity(clip.patcher, module, [description(_comfys(type(clip))), how], own)


def of_model(encoder: Any) -> Identity:
    """The fingerprint of another encoder with a `model` and its `patcher`, as comfy's ClipVisionModel and AudioEncoderModel have them.

    Raises NotCacheable as of_vae() does.
    """
    with _or_refused(reasons.ENCODER):
        module = encoder.model
        if module is not encoder.patcher.model:
            raise NotCacheable(reasons.OTHER_MODEL.of(what=reasons.ENCODER))
        parts = {**_names(module), id(encoder): "the encoder", id(encoder.patcher): "the patcher"}
        how = {n: description(v, parts) for n, v in vars(encoder).items() if n not in ("model", "patcher")}
        own = any(is_foreign(v) for v in vars(encoder).values())
        return _identity(encoder.patcher, module, [description(_comfys(type(encoder))), how], own)


def tokenizer_is_modified(clip: Any) -> bool:
    """Whether the tokenizer of a CLIP, or one that it is made of, is or holds code of another pack."""
    waiting, seen = [clip.tokenizer], set[int]()
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if is_foreign(type(holder)):
            return True
        for name, value in getattr(holder, "__dict__", {}).items():
            if is_foreign(value) or (callable(value) and isinstance(value, _CALLABLES) and hasattr(type(holder), name)):
                return True
            if type(value).__module__.startswith("comfy."):
                waiting.append(value)
    return False


_CALLABLES = (type(lambda: None), type(Identity.__init__.__get__(1)))


@contextmanager
def _or_refused(what: Text) -> Iterator[None]:
    """Whatever another version of ComfyUI, another pack's encoder or a class of weights raises."""
    try:
        yield
    except NotCacheable:
        raise
    except Exception as error:
        raise NotCacheable(reasons.UNKNOWN_ENCODER.of(what=what, error=type(error).__name__)) from error


def _comfys(kind: type) -> type:
    """The class below the memo's own."""
    return next(c for c in kind.__mro__ if c.__module__.split(".")[0] != __name__.split(".")[0])


def _names(module: Any) -> dict[int, str]:
    return {id(part): name for name, part in module.named_modules()}


def _identity(patcher: Any, module: Any, about: list[Any], own: bool) -> Identity:
    seen = state_of(patcher, module)
    if module not in _built or _built[module][0] != seen:
        _built[module] = seen, _base(patcher, module)
    base = _built[module][1]
    told = digest(base.digest, _patches(patcher), about, environment_digest(patcher.load_device))
    return replace(base, digest=told, modified=base.modified or own)


# how an encoder is built


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of a module that say how it is built."""
    for name, value in vars(part).items():
        if name in ("weight_function", "bias_function") and not value:
            continue  # None before ComfyUI first loads the weights, then an empty list
        if name.endswith("_function") and name.removesuffix("_function").removesuffix("_lowvram") in part._parameters:
            # filled by ComfyUI as it loads weights in part; what other packs put there counts
            if any(is_foreign(type(f)) or is_foreign(f) for f in (value if isinstance(value, list) else [value])):
                yield name, value
        elif name not in _RUNTIME:
            yield name, value


def state_of(patcher: Any, module: Any) -> object:
    """A cheap change detector within this process; keeps nothing alive. patcher: of the module; what it patches is no change."""
    parts = None
    if any(_filled(getattr(torch.nn.modules.module, f"_global{hooks}", None)) for hooks in _HOOKS):
        raise NotCacheable(reasons.HOOK_ON_ALL)
    told: list[Any] = []
    for part in module.modules():
        if any(getattr(part, hooks, None) for hooks in _HOOKS):
            raise NotCacheable(reasons.HOOK_ON_MODULE)
        told.append(_same(part))
        for name, value in _attributes(part):
            if type(value) in CONSTANTS:
                told.append((name, value))
                continue
            if parts is None:
                parts = _names(module)
            told.append((name, _brief(value, parts, 0)))
    return told, _spots(as_loaded(patcher, module))


def _same(value: Any) -> object:
    """Equal for one and the same object alone. A reference by itself would compare what it refers to."""
    there = ref(value)
    return id(there), there


def _brief(value: Any, parts: dict[int, str], depth: int) -> object:
    kind = type(value)
    if kind in CONSTANTS or kind is torch.dtype:
        return kind, value
    if id(value) in parts:
        return parts[id(value)]
    if depth < _DEPTH:
        if kind in (list, tuple):
            return kind, [_brief(v, parts, depth + 1) for v in value]
        if kind is dict:
            return [(str(k), _brief(v, parts, depth + 1)) for k, v in value.items()]
        if kind in (set, frozenset) and all(type(v) in CONSTANTS or type(v) is torch.dtype for v in value):
            return kind, frozenset(value)
    if isinstance(value, type | type(len)) or (isinstance(value, _CALLABLES[0]) and lies_where_defined(value)):
        return _same(value)  # a class or a function of a module
    return description(value, parts)


def _base(patcher: Any, module: Any) -> Identity:
    """The fingerprint of a module and its weights, without patches and environment."""
    parts, names = dict(module.named_modules()), _names(module)
    built = [
        [name, description(type(part)), {n: description(v, names) for n, v in _attributes(part)}]
        for name, part in parts.items()
    ]
    weights = _read(as_loaded(patcher, module))
    return Identity(digest(built, _constants(parts.values()), weights), any(map(_is_replaced_in, parts.values())))


def _is_replaced_in(part: Any) -> bool:
    """Whether a method of a module was replaced on the object itself, or an attribute is another pack's."""
    held = dict(_attributes(part))
    return any(is_foreign(v) or (isinstance(v, _CALLABLES) and hasattr(type(part), n)) for n, v in held.items())


def is_modified(encoder: Any) -> bool:
    """Whether a comfy VAE or CLIP is not as its loader and ComfyUI's own nodes make one: reads no weights."""
    try:
        module = encoder.first_stage_model if hasattr(encoder, "first_stage_model") else encoder.cond_stage_model
        _refuse_unknown(encoder.patcher)
        hooked = any(_filled(getattr(part, hooks, None)) for part in module.modules() for hooks in _HOOKS)
        foreign = any(is_foreign(v) for v in vars(encoder).values()) or is_foreign(_comfys(type(encoder)))
        if hooked or foreign or any(map(_is_replaced_in, module.modules())):
            return True
        return hasattr(encoder, "tokenizer") and tokenizer_is_modified(encoder)
    except Exception:  # what is not understood may be anything
        return True


def _constants(parts: Iterable[Any]) -> list[Any]:
    """Plain values that the classes of an encoder hold: another pack may have set them."""
    classes = {c for part in parts for c in type(part).__mro__ if c.__module__.startswith("comfy.")}
    held = [
        [f"{c.__module__}.{c.__qualname__}.{n}", v] for c in classes for n, v in vars(c).items() if type(v) in CONSTANTS
    ]
    return sorted(([n, v] for n, v in held if not n.rpartition(".")[2].startswith("__")), key=lambda pair: pair[0])


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
    """A digest of named weights: of all bytes, or of samples and sums where that would take long. Every value counts in both."""
    parts: list[tuple[Any, ...]] = [(name, *part) for name, weight in weights for part in stored_parts(weight)]
    if sum(part.nbytes for _, _, part in parts) > WHOLE:
        parts = [(name, [*about, str(list(part.shape))], *_sampled(part)) for name, about, part in parts]
    return digest(parts)


def _spots(weights: Iterable[tuple[str, Any]]) -> object:
    """Sizes and some elements of each weight, wherever it lies.

    PyTorch's counter of writes does not serve: inference tensors, as which ComfyUI loads weights, have none, and writes to `.data` do not
    count.
    """
    shapes: list[object] = []
    found: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for _, weight in weights:
        try:
            for _, part in stored_parts(weight):
                shapes.append((part.shape, part.dtype))
                found.setdefault((part.dtype, part.device), []).append(_spots_of(part))
        except NotCacheable:  # an encoder with such weights has no fingerprint
            shapes.append(type(weight))
    return shapes, [torch.cat(spots).cpu().view(torch.uint8).numpy().tobytes() for spots in found.values()]


def _spots_of(part: Tensor) -> Tensor:
    """Elements at up to PLACES places in equal distances, (places, SPOT). No other element is read, as weights may be mapped from a file
    whose pages are not in memory."""
    room = part.untyped_storage().nbytes() // part.element_size() - part.storage_offset()
    size = min(part.numel(), room)  # elements in memory, also of transposed weights
    if size < SPOT:
        return part.as_strided((size, SPOT), (1, 0))
    step = max((size - SPOT) // PLACES, SPOT) | 1  # odd, so that not all lie in one column
    return part.as_strided((min((size - SPOT) // step + 1, PLACES), SPOT), (step, 1))


def stored_parts(weight: Any) -> Iterator[tuple[list[str], Tensor]]:
    """Plain tensors that a weight consists of, each with words that describe it: itself, a quantized weight's data and scales, which are
    not dequantized, or a GGUF weight's blocks. Raises NotCacheable for another class."""
    if type(weight) in (Tensor, torch.nn.Parameter):
        yield [], weight.detach()
        return
    kind = type(weight)
    # a Parameter of quantized data is of the data's class
    made = weight.state_dict("") if hasattr(weight, "state_dict") else None
    if isinstance(made, dict):
        for name, part in made.items():
            yield [_name_of(kind), str(weight.dtype), str(list(weight.shape)), str(name)], part.detach()
        return
    if not isinstance(weight, Tensor):
        raise NotCacheable(reasons.WEIGHTS_CLASS.of(name=kind.__name__))
    yield _stored(weight)


def _stored(weight: Tensor) -> tuple[list[str], Tensor]:
    """A weight of another pack's class that keeps its elements in a plain tensor: those, its class, and what else it holds.

    Raises NotCacheable where its elements are not in memory of its own.
    """
    with torch._C.DisableTorchFunctionSubclass():
        try:
            data = weight.detach().as_subclass(Tensor)
            stored = data.layout == torch.strided and data.untyped_storage().data_ptr() != 0
        except RuntimeError:
            stored = False
        if not stored or hasattr(weight, "__tensor_flatten__"):
            raise NotCacheable(reasons.WEIGHTS_CLASS.of(name=type(weight).__name__))
    return [description(type(weight)), *(description([n, v]) for n, v in sorted(vars(weight).items()))], data


def _sampled(weight: Tensor) -> tuple[Tensor, ...]:
    """Samples of a weight, and sums in which every byte counts; a small weight itself."""
    flat = weight.reshape(-1)
    if flat.numel() <= RUNS * RUN:
        return (flat,)
    each = flat.numel() // RUNS
    ends = [flat[: RUNS * each].view(RUNS, each)[:, :RUN].reshape(-1), flat[-RUN:]]
    return (torch.cat(ends), *_sums(flat.view(torch.uint8)))


def _sums(flat: Tensor) -> tuple[Tensor, ...]:
    """Sums over rows and over columns of the bytes (N,), taken as int64 and laid out in squares of BLOCK x BLOCK; and the rest as it is.

    Sums wrap around and so are exact. A change of one value changes one sum of each kind; values that change places within a row
    change the columns' sums.
    """
    square = BLOCK * BLOCK * 8
    told: list[Tensor] = []
    for start in range(0, flat.numel() - square + 1, square):
        piece = _as_int64(flat[start : start + square]).view(BLOCK, BLOCK)
        told += [piece.sum(0), piece.sum(1)]
    rest = flat[flat.numel() // square * square :]
    rows = rest.numel() // (BLOCK * 8)
    if rows:
        piece = _as_int64(rest[: rows * BLOCK * 8]).view(rows, BLOCK)
        told += [piece.sum(0), piece.sum(1)]
    told.append(rest[rows * BLOCK * 8 :])
    sums = torch.cat(told[:-1]) if len(told) > 1 else told[-1][:0]
    return sums, told[-1]


def _as_int64(flat: Tensor) -> Tensor:
    return (flat if flat.storage_offset() % 8 == 0 else flat.clone()).view(torch.int64)


# patches


def _patches(patcher: Any) -> str:
    """Patches of the weights: LoRAs with their strengths and ComfyUI's own. Raises NotCacheable for other patches."""
    _refuse_unknown(patcher)
    # a clone has its original's uuid until it is patched itself
    seen = (patcher.patches_uuid, sum(map(len, patcher.patches.values())))
    if patcher not in _patched or _patched[patcher][0] != seen:
        _patched[patcher] = seen, _digest_of(patcher.patches)
    rest = [_plain(patcher.object_patches), _plain(patcher.model_options), patcher.force_cast_weights]
    return digest(_patched[patcher][1], rest, description(_comfys(type(patcher))))


def _refuse_unknown(patcher: Any) -> None:
    for name, reason in (
        ("forced_hooks", reasons.HOOKS),
        ("hook_patches", reasons.HOOKS),
        ("injections", reasons.INJECTED),
        ("additional_models", reasons.ATTACHED),
        ("weight_wrapper_patches", reasons.WRAPPED_WEIGHTS),
        ("wrappers", reasons.WRAPPERS),
        ("callbacks", reasons.CALLBACKS),
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
        raise NotCacheable(reasons.PATCH_NESTED)
    if isinstance(part, tuple | list):
        return [_patch(p, tensors, depth + 1) for p in part]
    if isinstance(part, dict):
        return [[str(name), _patch(part[name], tensors, depth + 1)] for name in sorted(part, key=str)]
    if hasattr(part, "weights"):  # comfy.weight_adapter: LoRA, LoHa ...
        held = {name: value for name, value in vars(part).items() if name != "loaded_keys"}
        return [description(type(part)), _patch(held, tensors, depth + 1)]
    if callable(part):
        return description(part)
    raise NotCacheable(reasons.PATCH_CLASS.of(name=type(part).__name__))


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
        raise NotCacheable(reasons.PATCHED_FUNCTION)
    return value


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
