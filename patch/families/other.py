"""Families that make sound and 3D, and Stable Cascade."""

from __future__ import annotations

from .base import Family, Image, LeftOut, ModuleInput, Stack

X = (("x", 0),)

FAMILIES = (
    Family(
        "Stable Audio",
        ("comfy.ldm.audio.dit:AudioDiffusionTransformer",),
        (Stack("transformer.layers", X, "x"),),
        # memory tokens, and in Stable Audio 1 the time, stand before them; ComfyUI sets no patch size but 1
        image=Image("tail", (1,)),
        # in Stable Audio 1 the time is a token, not a modulation
        modulated=ModuleInput("self_attn"),
    ),
    Family(
        "ACE-Step",
        ("comfy.ldm.ace.model:ACEStepTransformer2DModel",),
        (Stack("transformer_blocks", (("x", "hidden_states"),), "x"),),
        image=Image("all", (16, 1)),
        modulated=ModuleInput("attn.to_q"),
    ),
    Family(
        "ACE-Step 1.5",
        ("comfy.ldm.ace.ace_step15:AceStepConditionGenerationModel",),
        (Stack("decoder.layers", (("x", "hidden_states"),), "x"),),
        image=Image("all", (2,)),
        modulated=ModuleInput("self_attn"),
    ),
    Family(
        "Hunyuan3D 2",
        ("comfy.ldm.hunyuan3d.model:Hunyuan3Dv2",),
        (
            Stack("double_blocks", (("img", "img"), ("txt", "txt")), ("img", "txt")),
            Stack("single_blocks", X, "x", joins=("txt", "img")),
        ),
        inplace=True,
        image=Image("all", (1,)),
        modulated=ModuleInput("img_attn.qkv"),
    ),
    Family(
        "Hunyuan3D 2.1",
        ("comfy.ldm.hunyuan3dv2_1.hunyuandit:HunYuanDiTPlain",),
        (Stack("blocks", X, "x"),),
        u_skips=True,
        image=Image("tail", (1,)),  # after the time
        modulated=ModuleInput("attn1"),
        # the model swaps the halves of the context's batch, whatever they are, and of what it returns
        batch=None,
    ),
    Family(
        "TripoSplat",
        ("comfy.ldm.triposplat.model:LatentSeqMMFlowModel",),
        (Stack("blocks", X, "x"),),
        # all tokens count, though only the first 8192 are the picture's: its latent is (batch, tokens, channels), which Image has no
        # way to say
        modulated=ModuleInput("attn"),
    ),
    Family(
        "Stable Cascade, stage C",
        ("comfy.ldm.cascade.stage_c:StageC",),
        # both levels have the same size; the layers that lead from one to the next are run on a skip too, on what then is not used
        tuple(Stack(at, X, "x") for at in ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1")),
        u_skips=True,
    ),
)
LEFT_OUT = (
    LeftOut(
        ("comfy.ldm.cascade.stage_b:StageB",),
        "stage B of Stable Cascade runs each block of its second half several times in one call",
    ),
)
