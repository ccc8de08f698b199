"""The demo's stopwatch: a node that tells how long the sampler alone took.

It is linked into the demo's own ComfyUI only, and put into the graph by demo/graph.py: the shared workflow lacks it.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

EVENT = "skipstone-demo.sampler"


def _timed(executor: Any, *args: Any, **kwargs: Any) -> Any:
    start = time.perf_counter()
    samples = executor(*args, **kwargs)
    if torch.cuda.is_available():  # kernels may still be running when the sampler returns
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    PromptServer.instance.send_sync(EVENT, {"seconds": seconds, "threads": torch.get_num_threads()})
    return samples


class Timer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneDemoTimer",
            display_name="Sampler stopwatch (demo)",
            category="_for_testing",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "skipstone-demo", _timed)
        return io.NodeOutput(model)


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Timer]


async def comfy_entrypoint() -> Extension:
    return Extension()
