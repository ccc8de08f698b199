"""Families that make video, with or without sound."""

from __future__ import annotations

from .base import Argument, Family, Image, ModuleInput, Stack

_X = (("x", 0),)
_WAN = (Stack("blocks", _X, "x"),)
_WAN_VIDEO = Image("head", (1, 2, 2), after="reference_latent")

FAMILIES = (
    Family(
        "Wan 2.1, Wan 2.2",
        (
            "comfy.ldm.wan.model:WanModel",
            "comfy.ldm.wan.model:CameraWanModel",
            "comfy.ldm.wan.model:SCAILWanModel",
            "comfy.ldm.wan.model_animate:AnimateWanModel",
        ),
        _WAN,
        image=_WAN_VIDEO,
        modulated=Argument("e"),  # the projected time embedding: what TeaCache's ret_mode polynomials were fitted on
    ),
    Family(
        "Wan 2.1 VACE, WanDancer",  # hints and music are added to what a block gave, in place
        ("comfy.ldm.wan.model:VaceWanModel", "comfy.ldm.wan.model_wandancer:WanDancerModel"),
        _WAN,
        inplace=True,
        image=_WAN_VIDEO,
        modulated=Argument("e"),
    ),
    Family(
        "HuMo",
        ("comfy.ldm.wan.model:HumoWanModel",),
        _WAN,
        image=Image("head", (1, 2, 2)),
        modulated=Argument("e"),
    ),
    Family(
        "Wan 2.2 S2V",  # speech is added to what a block gave, in place
        ("comfy.ldm.wan.model:WanModel_S2V",),
        _WAN,
        inplace=True,
        image=Image("head", (1, 2, 2)),
        modulated=Argument("e"),
    ),
    Family(
        "Wan 2.1 (causal)",
        ("comfy.ldm.wan.ar_model:CausalWanModel",),
        _WAN,
        image=_WAN_VIDEO,
        modulated=Argument("e"),
        state_option="ar_state",
    ),
    Family(
        "HunyuanVideo, HunyuanVideo 1.5, HunyuanImage 2.1",
        ("comfy.ldm.hunyuan_video.model:HunyuanVideo",),
        (
            Stack("double_blocks", (("img", "img"), ("txt", "txt")), ("img", "txt")),
            Stack("single_blocks", _X, "x", joins=("txt", "img")),  # none in 1.5
        ),
        dead=("txt",),
        inplace=True,
        image=Image("tail", "patch_size"),
        modulated=ModuleInput("img_attn.qkv"),
    ),
    Family(
        "LTX-Video",
        ("comfy.ldm.lightricks.model:LTXVModel",),
        (Stack("transformer_blocks", _X, "x"),),
        inplace=True,
        image=Image("all", (1, 1, 1)),
        modulated=ModuleInput("attn1"),
    ),
    Family(
        "LTX-2",  # x is (video, audio)
        ("comfy.ldm.lightricks.av_model:LTXAVModel",),
        (Stack("transformer_blocks", _X, "x"),),
        inplace=True,
        image=Image("all", (1, 1, 1)),
        modulated=ModuleInput("attn1"),
    ),
    Family(
        "Mochi",
        ("comfy.ldm.genmo.joint_model.asymm_models_joint:AsymmDiTJoint",),
        (Stack("blocks", (("img", 0), ("txt", 2)), ("img", "txt")),),
        dead=("txt",),
        modulated=ModuleInput("attn.qkv_x"),
    ),
    Family(
        "Cosmos 1",  # frames, height, width, batch, channels
        ("comfy.ldm.cosmos.model:GeneralDIT",),
        (Stack("blocks", _X, "x"),),
        inplace=True,
        modulated=ModuleInput("blocks.0.block"),
        batch=3,
    ),
    Family(
        "Cosmos-Predict2, Anima",
        ("comfy.ldm.cosmos.predict2:MiniTrainDIT", "comfy.ldm.anima.model:Anima"),
        (Stack("blocks", _X, "x"),),
        modulated=ModuleInput("self_attn"),
    ),
    Family(
        "CogVideoX",
        ("comfy.ldm.cogvideo.model:CogVideoXTransformer3DModel",),
        (Stack("blocks", (("img", "hidden_states"), ("txt", "encoder_hidden_states")), ("img", "txt")),),
        dead=("txt",),
        modulated=Argument("temb"),
    ),
    Family(
        "Kandinsky 5",
        ("comfy.ldm.kandinsky5.model:Kandinsky5",),
        (Stack("visual_transformer_blocks", _X, "x"),),
        modulated=ModuleInput("self_attention"),
    ),
    Family(
        "SeedVR2",  # all videos of a call in one row of tokens, and all texts in another
        ("comfy.ldm.seedvr.model:NaDiT",),
        (
            Stack(
                "blocks",
                (("img", "vid"), ("txt", "txt"), ("sizes", "vid_shape"), ("lengths", "txt_shape")),
                ("img", "txt", "sizes", "lengths"),
            ),
        ),
        dead=("txt",),
        same=("sizes", "lengths"),
        min_prefix=1,  # the first block lays out in a cache what all after it read
        image=Image(dim=0),
        modulated=ModuleInput("attn"),
        batch=None,
    ),
    Family(
        "MiniMax H3",  # one row of tokens: text, references, sound, video, of which sound is read too; one video a call
        ("comfy.ldm.minimax.model:MiniMaxH3Model",),
        (Stack("blocks", _X, "x"),),
        inplace=True,
        image=Image("tail", (1, 2, 2), dim=0, alone=False),
        modulated=ModuleInput("attn"),
        batch=None,
    ),
)
