"""Families that make pictures."""

from __future__ import annotations

from .base import Argument, Family, Image, ModuleInput, Stack

_X = (("x", 0),)
_JOINT = (("img", "img"), ("txt", "txt"))
_HIDDEN = (("img", "hidden_states"), ("txt", "encoder_hidden_states"))
_FLUX = (Stack("double_blocks", _JOINT, ("img", "txt")), Stack("single_blocks", _X, "x", joins=("txt", "img")))

FAMILIES = (
    Family(
        "Flux, Flux 2, LongCat-Image",  # reference latents (Kontext) follow the picture's own tokens
        ("comfy.ldm.flux.model:Flux",),
        _FLUX,
        inplace=True,
        image=Image("head", "patch_size"),
        modulated=ModuleInput("img_attn.qkv"),
    ),
    Family(
        "Chroma, Chroma Radiance",
        ("comfy.ldm.chroma.model:Chroma", "comfy.ldm.chroma_radiance.model:ChromaRadiance"),
        _FLUX,
        inplace=True,
        image=Image("all", "patch_size"),
        modulated=ModuleInput("img_attn.qkv"),
    ),
    Family(
        "Qwen-Image",  # the references of Qwen-Image-Edit follow the picture's own tokens
        ("comfy.ldm.qwen_image.model:QwenImageTransformer2DModel",),
        (Stack("transformer_blocks", _HIDDEN, ("txt", "img")),),
        dead=("txt",),
        image=Image("head", "patch_size"),
        modulated=ModuleInput("attn.to_q"),
    ),
    Family(
        "Qwen-Image 2.1",  # text and references, then the picture; their keys and values are computed once and kept
        ("comfy.ldm.qwen_image21.model:QwenImage21Transformer2DModel",),
        (Stack("transformer_blocks", _X, "x"),),
        inplace=True,
        image=Image("tail", (1, 1)),
        modulated=ModuleInput("attn"),
        prefill=Argument(4),
    ),
    Family(
        "Mage-Flow",
        ("comfy.ldm.mage_flow.model:MageFlowTransformer2DModel",),
        (Stack("transformer_blocks", _HIDDEN, ("txt", "img")),),
        dead=("txt",),
        image=Image("head", (1, 1)),
        modulated=ModuleInput("attn.to_q"),
    ),
    Family(
        "Lens",
        ("comfy.ldm.lens.model:LensTransformer2DModel",),
        (Stack("transformer_blocks", _HIDDEN, ("txt", "img")),),
        dead=("txt",),
        image=Image("all", (1, 1)),
        modulated=ModuleInput("attn.img_qkv"),
    ),
    Family(
        "JoyImage",
        ("comfy.ldm.joyimage.model:JoyImageTransformer3DModel",),
        (Stack("double_blocks", _HIDDEN, ("img", "txt")),),
        dead=("txt",),
        image=Image("head", "patch_size"),
        modulated=ModuleInput("attn"),
    ),
    Family(
        "Stable Diffusion 3, 3.5",
        ("comfy.ldm.modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper",),
        (Stack("joint_blocks", (("img", 1), ("txt", 0)), ("txt", "img")),),
        dead=("txt",),
        image=Image("all", "patch_size"),
        modulated=ModuleInput("x_block.attn.qkv"),
    ),
    Family(
        "AuraFlow",
        ("comfy.ldm.aura.mmdit:MMDiT",),
        (
            Stack("double_layers", (("img", 1), ("txt", 0)), ("txt", "img")),
            Stack("single_layers", _X, "x", joins=("txt", "img")),
        ),
        image=Image("all", "patch_size"),
        modulated=ModuleInput("attn.w2q"),
    ),
    Family(
        "Lumina 2, Z-Image",  # text, then reference pictures, then the picture
        ("comfy.ldm.lumina.model:NextDiT", "comfy.ldm.lumina.model:NextDiTPixelSpace"),
        (Stack("layers", _X, "x"),),
        image=Image("tail", "patch_size", pads="pad_tokens_multiple"),
        modulated=Argument(3),
    ),
    Family(
        "HiDream I1, E1",  # before every block the loop puts another layer of the text encoder at the end of what it is given
        ("comfy.ldm.hidream.model:HiDreamImageTransformer2DModel",),
        (
            Stack("double_stream_blocks", (("img", "image_tokens"), ("txt", "text_tokens")), ("img", "txt")),
            Stack("single_stream_blocks", (("x", "image_tokens"),), "x", joins=("img", "txt")),
        ),
        modulated=ModuleInput("block.attn1"),
    ),
    Family(
        "HiDream O1",
        ("comfy.ldm.hidream_o1.model:HiDreamO1Transformer",),
        (Stack("language_model.layers", (("x", "x"),), ("x", "")),),
        state_argument="past_key_value",
    ),
    Family(
        "OmniGen 2",  # text, references, picture
        ("comfy.ldm.omnigen.omnigen2:OmniGen2Transformer2DModel",),
        (Stack("layers", _X, "x"),),
        image=Image("tail", "patch_size"),
        modulated=ModuleInput("attn"),
    ),
    Family(
        "Boogu",  # references, picture
        ("comfy.ldm.boogu.model:BooguTransformer2DModel",),
        (
            Stack("double_stream_layers", (("img", 0), ("txt", 1)), ("img", "txt")),
            Stack("single_stream_layers", _X, "x", joins=("txt", "img")),
        ),
        image=Image("tail", "patch_size"),
        modulated=ModuleInput("img_instruct_attn"),
    ),
    Family(
        "Krea 2",  # text, picture, references
        ("comfy.ldm.krea2.model:SingleStreamDiT",),
        (Stack("blocks", _X, "x"),),
        image=Image("img_slice", "patch"),
        modulated=ModuleInput("attn"),
    ),
    Family(
        "Ideogram 4",
        ("comfy.ldm.ideogram4.model:Ideogram4Transformer2DModel",),
        (Stack("layers", _X, "x"),),
        image=Image("tail", (1, 1)),
        modulated=ModuleInput("attention"),
    ),
    Family(
        "ERNIE-Image",
        ("comfy.ldm.ernie.model:ErnieImageModel",),
        (Stack("layers", _X, "x"),),
        image=Image("head", "patch_size"),
        modulated=ModuleInput("self_attention"),
    ),
    Family(
        "PixArt",
        ("comfy.ldm.pixart.pixartms:PixArtMS",),
        (Stack("blocks", _X, "x"),),
        image=Image("all", "patch_size"),
        modulated=ModuleInput("attn"),
    ),
    Family(
        "HunyuanDiT",
        ("comfy.ldm.hydit.models:HunYuanDiT",),
        (Stack("blocks", _X, "x"),),
        u_skips=True,
        image=Image("all", "patch_size"),
        modulated=ModuleInput("attn1"),
    ),
    Family(
        "PixelDiT, PiD",
        ("comfy.ldm.pixeldit.model:PixDiT_T2I", "comfy.ldm.pixeldit.pid:PidNet"),
        (Stack("patch_blocks", (("img", 0), ("txt", 1)), ("img", "txt")),),
        dead=("txt",),
        image=Image("all", "patch_size"),
        modulated=ModuleInput("attn"),
    ),
)
