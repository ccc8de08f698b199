"""Records of model families for the block hook: data, never a copy of a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Argument:
    """An argument of a block's call: a keyword, or a position where the model's loop passes it by position."""

    name: str | int


@dataclass(frozen=True)
class ModuleInput:
    """The input of a module within a block, by its path, such as "img_attn.qkv"."""

    path: str


@dataclass(frozen=True)
class Stack:
    """A list of blocks that the model calls one after the other, each once.

    Parameters
    ----------
    at: path of the list in the diffusion model, such as "double_blocks" or "transformer.layers"; a ModuleList or a ModuleDict.
    takes: the streams in a block's call as (name, argument), where the argument is a keyword, or a position where the loop passes it by
        position. The image's stream is the first. A stream is a tensor whose first dimension is the batch, or a tuple of such tensors.
    gives: the streams in a block's output: the name if it returns the stream itself; for a tuple the names in order, "" for elements
        that are no stream.
    joins: for a stack after the first: the previous stack's streams in the order in which the model concatenates them along dimension 1
        to this stack's first stream; () where the streams continue under the same names.
    """

    at: str
    takes: tuple[tuple[str, str | int], ...]
    gives: str | tuple[str, ...]
    joins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """Which tokens of the first stack's first stream belong to the latent that is sampled. The others are references, padding and text.

    Parameters
    ----------
    where: "all"; "head" or "tail"; "img_slice": from the position in transformer_options["img_slice"], a list [begin, end], or the
        "tail" without one.
    patch: latent elements per token along each of the latent's last len(patch) dimensions, so that there are
        prod(ceil(size / patch)) tokens; or the name of the network's attribute with them (an int: along each of the last two).
    pads: name of the network's attribute with the multiple to which image tokens are padded (None: not padded). Padding counts as image.
    dim: dimension of the tokens.
    after: name of the forward kwarg whose reference tokens precede the image tokens.
    alone: nothing reads the other tokens after the last block, so their residual is not kept (later blocks of the stack do read them).
    """

    where: Literal["all", "head", "tail", "img_slice"] = "all"
    patch: tuple[int, ...] | str = ()
    pads: str = ""
    dim: int = 1
    after: str = ""
    alone: bool = True


@dataclass(frozen=True)
class Family:
    """A family of diffusion models, recognised by the network's class.

    Parameters
    ----------
    name: for people.
    classes: "module:Class" of the networks whose forward this record describes. A derived class with a forward of its own needs its own
        record.
    stacks: in the order in which they run; () for a UNet.
    unet: input_blocks, middle_block and output_blocks of ComfyUI's UNetModel.
    dead: streams of the last stack that nothing reads after it; their residual is not kept.
    same: streams that blocks pass on unchanged; nothing is kept of them.
    inplace: blocks, or the loop around them, write to the streams that they are given: kept streams are copied.
    u_skips: the last blocks read the outputs of the first ones (U-shaped skips), so the suffix is at most the prefix.
    image: which tokens belong to the image.
    modulated: TeaCache's input at the first block: the modulated first stream, or an argument that depends on time; None without one.
    batch: the streams' dimension along which the conditionings of a call are batched; None where they cannot be separated: a call's
        streams are then kept as one, for these conditionings in this order.
    state_option: a key of transformer_options; while it is present, the blocks keep state from call to call and all of them run.
    state_argument: an argument of the first block's call; while it is an empty tuple, the model collects further outputs of the blocks
        and all of them run. The collection may outlive a run, so all blocks run in the first evaluation, too.
    min_prefix: number of first blocks that run in every call.
    prefill: an argument of a block's call: the number of its first tokens that are text and references. A call with no other tokens
        computes the keys and values that the model keeps of them. It always runs, also within a skip.
    """

    name: str
    classes: tuple[str, ...]
    stacks: tuple[Stack, ...] = ()
    unet: bool = False
    dead: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    inplace: bool = False
    u_skips: bool = False
    image: Image = Image()
    modulated: ModuleInput | Argument | None = None
    batch: int | None = 0
    state_option: str = ""
    state_argument: str = ""
    min_prefix: int = 0
    prefill: Argument | None = None


@dataclass(frozen=True)
class LeftOut:
    """Classes of diffusion models that are not supported at block level. why: a clause without a full stop."""

    classes: tuple[str, ...]
    why: str
