"""A digest of everything besides encoder and input that affects the result: code, versions, options, machine, torch's switches."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch

from ...core.memo.keys import digest
from . import source_code
from .describe import description
from .modifications import modified_code

# ComfyUI's options that change no bits: addresses, folders, logs, caches, which of several devices of one kind, how memory is
# allocated and moved
_NO_BITS = {
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


def environment_digest(device: torch.device) -> str:
    """Of everything but weights and input that decides what an encoder on `device` computes.

    Raises NotCacheable where ComfyUI's code was replaced, or changed on disk, in a way that cannot be described.
    """
    from comfy import model_management
    from comfy.cli_args import args
    from comfy.ldm.modules import attention

    options = {name: _option(value) for name, value in vars(args).items() if name not in _NO_BITS}
    attentions = [
        description(getattr(attention, name, None)) for name in ("optimized_attention", "optimized_attention_masked")
    ]
    vaes = [bool(model_management.xformers_enabled_vae()), bool(model_management.pytorch_attention_enabled_vae())]
    dtypes = [str(model_management.intermediate_dtype()), str(model_management.intermediate_device().type)]
    code = [source_code.comfyui_digest(), modified_code()]
    return digest(source_code.versions(), code, options, attentions, vaes, dtypes, _machine(device), _switches(device))


def _option(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


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
