"""What the block hook has to know of a model family: data, never a copy of a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stack:
    """A list of blocks that the model calls one after the other, each once.

    at: where the list is in the diffusion model, as "double_blocks" or "transformer.layers"; a ModuleList or a ModuleDict.
    takes: the streams in a block's call: (name, argument), the argument a keyword, or a position where the loop gives it by
    place. The image's own stream is the first. A stream's value is a tensor whose first dimension is the batch, or a tuple of such.
    gives: the streams in what a block returns: the name where it returns the stream itself; for a tuple the names in its order, ""
    where there stands something that is no stream.
    joins: for a stack after the first: the streams of the stack before, in the order in which the model concatenates them along
    dimension 1 to make this stack's first stream; () where the streams go on under the same names.
    """

    at: str
    takes: tuple[tuple[str, str | int], ...]
    gives: str | tuple[str, ...]
    joins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """Which of the tokens along dimension 1 of the first stack's first stream are the picture's own, the latent that is sampled.

    where: "all"; "head" or "tail" of them; "img_slice": they begin where the key of that name in the block's transformer_options
    says, [begin, end], and are the "tail" where it says nothing. patch: how many latent elements along each of the latent's last
    len(patch) dimensions a token stands for: there are prod(ceil(size / patch)) of them; or the name of the network's attribute
    that says so (an int there: along each of the last two). Reference pictures, padding and text are the rest. pads: the name of
    the network's attribute that says to a multiple of what the picture's tokens are filled up with tokens of no meaning (None
    there: they are not); those are counted as the picture's. dim: where the tokens are along another dimension than 1. after: a
    keyword of the network's call; if a latent (batch, channels, ...) is given under it, its tokens come first, where there are so
    many more than the picture's, and then those. alone: nothing reads the others after the last block; their residual is not kept
    (but its later blocks do read them).
    """

    where: Literal["all", "head", "tail", "img_slice"] = "all"
    patch: tuple[int, ...] | str = ()
    pads: str = ""
    dim: int = 1
    after: str = ""
    alone: bool = True


@dataclass(frozen=True)
class Family:
    """A kind of diffusion model, known by its network's class.

    name: as people know it. classes: "module:Class" of diffusion models whose forward this describes; a class derived from one of
    them that has a forward of its own needs a record of its own.
    stacks: in the order in which they run. () for a UNet (unet=True), whose input_blocks, middle_block and output_blocks are known.
    dead: streams of the last stack that nothing reads after it; their residual is not kept either.
    same: streams that blocks hand on as they are: nothing is kept of them.
    inplace: blocks, or the loop around them, write to the streams that they are given: what is kept of those is a copy.
    u_skips: the last blocks take what the first ones gave (U-shaped skips): no more of the last than of the first may run on a skip.
    image: which tokens are the picture's.
    modulated: what TeaCache looks at: the path, within the first block, of the module whose input is the modulated first stream
    ("img_attn.qkv"), or "arg:NAME" or "arg:POSITION" for an argument of the first block's call that depends on time ("arg:e"); "" where
    there is none.
    batch: the dimension of the streams along which the conditionings of one call are batched; None where they cannot be told apart:
    a call's streams are then one thing, kept for just these conditionings in this order.
    state: a key of transformer_options; while it is there the blocks keep state of their own from call to call, and all must run.
    Or "arg:NAME", an argument of the first block's call; while it is an empty tuple the model collects what the blocks give besides
    the streams, and all must run. What it collects may outlive a run, so it is not relied on in the first evaluation either.
    least: so many of the first blocks must run in every call.
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
    modulated: str = ""
    batch: int | None = 0
    state: str = ""
    least: int = 0


@dataclass(frozen=True)
class LeftOut:
    """A class of diffusion model that cannot be done at block level, and why: a sentence that ends without a full stop."""

    classes: tuple[str, ...]
    why: str
