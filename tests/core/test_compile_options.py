"""What may be asked of a compiler: options from a stranger's workflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch._inductor

from skipstone.core.compile_options import COUNTS, KNOWN, LISTS, SWITCHES, WORDS, Settings, advice, options_of


def test_what_is_allowed():
    text = '{"max_fusion_size": 32, "epilogue_fusion": true, "max_autotune_gemm_backends": "TRITON,ATEN", "triton.cudagraphs": false}'
    assert options_of(text) == (
        ("epilogue_fusion", True),
        ("max_autotune_gemm_backends", "TRITON,ATEN"),
        ("max_fusion_size", 32),
        ("triton.cudagraphs", False),
    )
    assert options_of("") == options_of(" \n") == options_of("{}") == ()


@pytest.mark.parametrize(
    "name",
    [
        "cpp.cxx",
        "cuda.cuda_cxx",
        "cutlass.cutlass_dir",
        "rocm.rocm_home",
        "global_cache_dir",
        "worker_log_path",
        "trace.enabled",
        "trace.debug_dir",
        "trace.upload_tar",
        "aot_inductor.output_path",
        "aot_inductor.custom_op_libs",
        "joint_custom_pre_pass",
        "post_grad_custom_post_pass",
        "pre_grad_custom_pass",
        "post_grad_fusion_options",
        "add_pre_grad_passes",
        "inductor_choices_class",
        "run_jit_post_compile_hook",
        "external_matmul",
        "unsafe_marked_cacheable_functions",
        "cpu_backend",
        "save_args",
        "fx_graph_remote_cache",
        "guard_filter_fn",
        "use_aoti",
        "max-autotune",
        "__class__",
        "nonsense",
    ],
)
@pytest.mark.parametrize("value", ['"x"', "true", "1"])
def test_what_names_programs_files_folders_hooks_or_passes_is_refused(name, value):
    with pytest.raises(
        ValueError, match=f"'{name}' is not allowed: only options .* allowed: [\\w.]+, [\\w.]+, [\\w.]+$"
    ):
        options_of(f'{{"{name}": {value}}}')


def test_weights_must_not_become_constants():
    with pytest.raises(ValueError, match=r"'freezing' is not allowed: .* LoRA"):
        options_of('{"freezing": true}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epilogue_fusion": 1}', "epilogue_fusion is true or false, not 1"),
        ('{"epilogue_fusion": "os.system"}', "epilogue_fusion is true or false"),
        ('{"max_fusion_size": true}', "max_fusion_size is a whole number from 1 to 4096, not True"),
        ('{"max_fusion_size": 1e3}', "max_fusion_size is a whole number"),
        ('{"max_fusion_size": 99999}', "max_fusion_size is a whole number"),
        ('{"max_fusion_size": NaN}', "max_fusion_size is a whole number"),
        ('{"max_autotune_gemm_backends": "CUTLASS"}', "is one of ATEN, TRITON, CPP, or several"),
        ('{"max_autotune_gemm_backends": ["ATEN"]}', "is one of ATEN, TRITON, CPP"),
        ('{"max_autotune_gemm_search_space": "DEFAULT,DEFAULT"}', "is one of DEFAULT, EXHAUSTIVE, not"),
        ('{"epilogue_fusion": true', "options is JSON"),
        ("epilogue_fusion", "options is JSON"),
        ("[" * 100000, "options is JSON"),
        ("[true]", "a JSON object of names and values"),
        ("null", "a JSON object of names and values"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        options_of(text)


def test_what_is_allowed_names_no_place_and_no_code():
    """Inductor's own types say of each that it is a switch, a count or a word."""
    config: Any = torch._inductor.config
    known = config.get_config_copy()
    for name in set(KNOWN) & known.keys():
        kind = config.get_type(name)
        if name in SWITCHES:
            assert kind is bool, name
        elif name in COUNTS:
            low, high = COUNTS[name]
            assert known[name] is None or low <= known[name] <= high, name
        else:
            assert {*str(known[name]).split(",")} <= {*WORDS[name]}, name
    assert len(set(KNOWN) & known.keys()) > len(KNOWN) / 2
    assert set(LISTS) <= WORDS.keys()


def test_settings_name_what_there_is():
    Settings(backend="tvm", compiler="mine").check(["tvm"], ["mine"])
    with pytest.raises(ValueError, match="backend is one of inductor, cudagraphs, eager, aot_eager, not 'tvm'"):
        Settings(backend="tvm").check()
    with pytest.raises(ValueError, match=r"compiler is one of torch\.compile, not 'mine'"):
        Settings(compiler="mine").check()
    with pytest.raises(ValueError, match="the backend eager takes none"):
        Settings(backend="eager", options=(("epilogue_fusion", True),)).check()


@pytest.mark.parametrize(
    ("settings", "graphs"),
    [
        (Settings(), False),
        (Settings(mode="reduce-overhead"), True),
        (Settings(mode="max-autotune"), True),
        (Settings(mode="max-autotune-no-cudagraphs"), False),
        (Settings(mode="max-autotune", options=(("triton.cudagraphs", False),)), False),
        (Settings(options=(("triton.cudagraphs", True),)), True),
        (Settings(mode="reduce-overhead", backend="eager"), False),
        (Settings(backend="cudagraphs"), True),
        (Settings(mode="reduce-overhead", compiler="mine"), False),
    ],
)
def test_where_cuda_graphs_are_used(settings, graphs):
    assert settings.graphs == graphs


@pytest.mark.parametrize(
    ("message", "todo"),
    [
        ("Cannot find a working triton installation.", "triton-windows"),
        ("RuntimeError: Compiler: cl is not found.", "Visual Studio"),
        ("Failed to find C compiler. Please specify via CC environment variable.", "gcc"),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("Unexpected optimization option guard_filter_fn, known options are", "torch 2.8"),
        ("the sky is low", ""),
    ],
)
def test_what_to_do_about_an_error(message, todo):
    outer = ValueError("the backend failed")
    outer.__cause__ = RuntimeError(message)
    assert todo in advice(RuntimeError(message))
    assert todo in advice(outer)
    assert bool(advice(outer)) == bool(todo)


def test_a_mistyped_option_is_told_the_nearest_ones_and_not_all():
    with pytest.raises(ValueError, match="epilogue_fusion") as error:
        options_of('{"epilog_fusion": true}')
    assert len(str(error.value)) < 300 and "max_fusion_size" not in str(error.value)
