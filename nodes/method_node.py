"""The base of the method nodes: MODEL in, MODEL with a step cache out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from comfy_api.latest import io

from ..core.step.auto.method import AutoMethod
from ..core.step.method import Method
from ..patch.step.attach import attach
from .reporting import Reporter

AUTO = "Skipstone/step cache"
ANY_MODEL = "Skipstone/methods: any model"
INSIDE = "Skipstone/methods: inside the model"
ALIASES = ("skipstone", "step cache", "cache", "skip steps")


class MethodNode(io.ComfyNode):
    """A subclass gives the class attributes below, `inputs`, and nothing else.

    Attributes:
        id (str): the node's id in saved workflows. It never changes.
        name (str): its title.
        category (str): AUTO, ANY_MODEL or INSIDE.
        description (str): it begins with what sets the node apart from the others; people see that line when they search.
        aliases (tuple of str): further names to find it by, beside ALIASES.
        method (callable): makes a Method or an AutoMethod of the widgets' values, given by name. Raises ValueError for a value out
            of its range.
    """

    id: ClassVar[str]
    name: ClassVar[str]
    category: ClassVar[str] = ANY_MODEL
    description: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    method: ClassVar[Callable[..., Method | AutoMethod]]

    @classmethod
    def inputs(cls) -> list[Any]:
        """The inputs after `model`, in the order of the widgets. Only the first one is required: ComfyUI lists required inputs before
        optional ones, and saved workflows hold the widgets' values by place."""
        raise NotImplementedError

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.id,
            display_name=cls.name,
            category=cls.category,
            description=cls.description,
            search_aliases=[*ALIASES, *cls.aliases],
            inputs=[io.Model.Input("model", tooltip="The model to sample faster."), *cls.inputs()],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # or ComfyUI would give one node the MODEL that it cached for another with the same inputs
        )

    @classmethod
    def execute(cls, model: Any, **values: Any) -> io.NodeOutput:
        reporter = Reporter(cls.hidden.unique_id)  # reports go to the browser under the node's id
        return io.NodeOutput(attach(model, cls.method(**values), (reporter,), (reporter.watch,)))
