"""A real ComfyUI in this process, on the CPU, with small models of random weights and with the demo's trained ones."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "demo" / "models"

if "COMFYUI_PATH" not in os.environ:
    raise pytest.UsageError("COMFYUI_PATH is not set: run the tests with `make test`")
sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True  # before anything asks for a device
comfy.cli_args.args.use_pytorch_cross_attention = True  # as on most GPUs; ComfyUI's own for the CPU takes longer

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

# as main.py does, before ComfyUI's nodes.py puts a utils.py in its way
import utils.extra_config  # noqa: E402, F401
from comfy.patcher_extension import WrappersMP  # noqa: E402

SIZE = (16, 16, 16)  # channels, height, width of the demo's latents
FLUX = MODELS / "skipstone_demo_flux.safetensors"
CLIP = MODELS / "skipstone_demo_clip.pt"
SECOND_EXPERT = MODELS / "skipstone_demo_flux_low.safetensors"
BOUNDARY = 0.5  # the sigma below which the second expert is used (demo/training/train.py)


class Studio:
    """What a graph would hold: a model, the demo's prompts, and a sampler to run them with."""

    def __init__(self, model: Any, clip: Any, tokens: int | None = None) -> None:
        self.model, self.clip, self.tokens = model, clip, tokens
        self.files = {"flux": str(FLUX), "clip": str(CLIP)}
        self.encoded: dict[str, Any] = {}
        self.sampled: dict[tuple[object, ...], torch.Tensor] = {}

    def of(self, model: Any) -> Studio:
        """The same with another model."""
        other = Studio(model, self.clip, self.tokens)
        other.encoded = self.encoded
        return other

    def prompt(self, text: str = "a red apple on a blue background") -> Any:
        """CONDITIONING for a text, encoded once; nodes and samplers are not supposed to write to it. Of every 77 tokens the first
        `tokens`: the rest is padding, which a model of random weights needs no more of than of a prompt's."""
        if text not in self.encoded:
            self.encoded[text] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            if self.tokens:
                for part in self.encoded[text]:
                    part[0] = torch.cat([t[:, : self.tokens] for t in part[0].split(77, 1)], 1)
        return self.encoded[text]

    @property
    def long_prompt(self) -> Any:
        """More tokens than CLIP takes at once: Flux cannot batch it with a short prompt."""
        return self.prompt("a frog on a white background, " * 20)

    @cached_property
    def second_expert(self) -> Any:
        """A MODEL of the same class for the lower half of the noise, as Wan 2.2 has: the demo's fine-tune, and where that is not
        there the demo's Flux with every weight moved by about 1% of its layer's."""
        if SECOND_EXPERT.is_file():
            return comfy.sd.load_diffusion_model(str(SECOND_EXPERT))
        model, generator = comfy.sd.load_diffusion_model(str(FLUX)), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.model.diffusion_model.parameters():
                p += (
                    (0.01 * p.float().std() * torch.randn(p.shape, generator=generator)).to(p.dtype)
                    if p.ndim > 1
                    else 0
                )
        return model

    def noise(self, seed: int = 1, batch: int = 1) -> torch.Tensor:
        return comfy.sample.prepare_noise(torch.zeros(batch, *SIZE), seed)

    def sample(
        self,
        model: Any,
        positive: Any = None,
        negative: Any = None,
        *,
        steps: int = 8,
        cfg: float = 3.0,
        sampler: str = "euler",
        scheduler: str = "simple",
        seed: int = 1,
        latent: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """As the KSampler node does it; latents (batch, 16, 16, 16) on the CPU."""
        if latent is None:
            latent = torch.zeros(1, *SIZE) if noise is None else torch.zeros_like(noise)
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed) if noise is None else noise,
            steps,
            cfg,
            sampler,
            scheduler,
            self.prompt() if positive is None else positive,
            self.prompt("") if negative is None else negative,
            latent,
            seed=seed,
            disable_pbar=True,
            **more,
        )

    def sample_custom(
        self, model: Any, sigmas: Any, *, sampler: Any = "euler", cfg: float = 3.0, latent: Any = None, seed: int = 1
    ) -> torch.Tensor:
        """As SamplerCustom does it, on any list of sigmas."""
        return comfy.sample.sample_custom(
            model,
            self.noise(seed),
            cfg,
            comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler,
            torch.as_tensor(sigmas, dtype=torch.float32),
            self.prompt(),
            self.prompt(""),
            torch.zeros(1, *SIZE) if latent is None else latent,
            disable_pbar=True,
            seed=seed,
        )

    def full(self, text: str = "a red apple on a blue background", **how: Any) -> torch.Tensor:
        """The unpatched model's answer, sampled once a session for each text and `how` (of plain values)."""
        key = (text, *sorted(how.items()))
        if key not in self.sampled:
            self.sampled[key] = self.sample(self.model, self.prompt(text), **how)
        return self.sampled[key].clone()


def load_demo_clip(layers: int) -> Any:
    """The demo's CLIP with so many of its twelve layers. They add nothing to a text (demo/training/text.py), and cost 0.2 s a prompt."""

    def made(model_options: Any, **options: Any) -> Any:
        config = {**model_options["clip_l_model_config"], "num_hidden_layers": layers}
        return comfy.sd1_clip.SD1CheckpointClipModel(
            model_options={**model_options, "clip_l_model_config": config}, **options
        )

    kind = comfy.sd.CLIPType.STABLE_DIFFUSION
    return comfy.sd.load_clip([str(CLIP)], clip_type=kind, model_options={"clip_l_class": made})


@pytest.fixture(scope="session")
def demo() -> Studio:
    """With the demo's trained model, for tests of how good a picture is. An evaluation costs 50 ms."""
    return Studio(comfy.sd.load_diffusion_model(str(FLUX)), load_demo_clip(layers=1))


@pytest.fixture(scope="session")
def studio(demo, small_flux) -> Studio:
    """With a model of the same class, of two double and two single blocks with random weights, for all other tests."""
    return Studio(small_flux(response=1.0, depth=2, depth_single_blocks=2), demo.clip, tokens=32)


@pytest.fixture(scope="session", autouse=True)
def nobodys_user_directory(tmp_path_factory):
    """Calibrations are kept under ComfyUI's user directory: tests have one of their own."""
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path_factory.mktemp("user")))
    yield
    folder_paths.set_user_directory(before)


@pytest.fixture
def meancache(studio):
    """A MODEL with MeanCache on it, and the reports of its runs: `model, reports = meancache(preset="Speed")`."""
    from skipstone.nodes.meancache import method_of
    from skipstone.patch.step.attach import attach

    def patched(model=None, **widgets):
        reports: list[Any] = []
        return attach(model or studio.model, method_of(**widgets), (reports.append,)), reports

    return patched


@pytest.fixture
def cached(studio):
    """A MODEL with any Method on it, and the reports of its runs: `model, reports = cached(easycache_of("Speed"))`."""
    from skipstone.patch.step.attach import attach

    def patched(method, model=None):
        reports: list[Any] = []
        return attach(model or studio.model, method, (reports.append,)), reports

    return patched


@dataclass
class Call:
    """One CALC_COND_BATCH as an observer sees it: copies of what went in and of what came out."""

    sigma: float
    x: torch.Tensor
    out: list[torch.Tensor]
    ran: bool  # the model was asked at least once
    place: tuple[object, ...]  # which of the evaluation's calls, in which window, with which blocks replaced
    present: list[bool]  # for each conditioning: is there one


@dataclass
class Evaluation:
    sigma: float
    calls: list[Call] = field(default_factory=list)
    model_ran: int = 0  # times that the diffusion model was really run

    @property
    def computed(self) -> bool:
        return self.model_ran > 0


class Watch:
    """What really happens in a run, seen by hooks around the pack's own that know nothing of it."""

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self.written: list[str] = []  # inputs that somebody wrote to

    def on(self, model: Any) -> Any:
        watched = model.clone()
        for kind, wrapper in (
            (WrappersMP.PREDICT_NOISE, self.predict_noise),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.DIFFUSION_MODEL, self.diffusion_model),
        ):
            watched.add_wrapper_with_key(kind, "watch", wrapper)
        return watched

    def predict_noise(self, executor, x, timestep, *args, **kwargs):
        self.evaluations.append(Evaluation(float(timestep[0])))
        return executor(x, timestep, *args, **kwargs)

    def calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        here, before, sigma = self.evaluations[-1], x.clone(), timestep.clone()
        ran = here.model_ran
        out = executor(model, conds, x, timestep, model_options)
        if not torch.equal(before, x):
            self.written.append("x")
        if not torch.equal(sigma, timestep):
            self.written.append("sigma")
        options = model_options["transformer_options"]
        window = tuple(getattr(options.get("context_window"), "index_list", ()))
        replaced = tuple(sorted(str(place) for d in options.get("patches_replace", {}).values() for place in d))
        place = (len(here.calls), window, replaced)
        copies = [d.clone() for d in out]
        here.calls.append(Call(float(sigma[0]), before, copies, here.model_ran > ran, place, [bool(c) for c in conds]))
        return out

    def diffusion_model(self, executor, *args, **kwargs):
        self.evaluations[-1].model_ran += 1
        return executor(*args, **kwargs)

    @property
    def computed(self) -> list[bool]:
        return [e.computed for e in self.evaluations]

    def agrees_with(self, report: Any) -> None:
        """Assert that a report lists the evaluations and the runs of the model that were observed."""
        assert len(report.evaluations) == len(self.evaluations)
        assert [e.sigma for e in report.evaluations] == [e.sigma for e in self.evaluations]
        assert [e.computed for e in report.evaluations] == self.computed
        assert report.computed == sum(self.computed)
        assert report.skipped == len(self.evaluations) - sum(self.computed)


@pytest.fixture
def watched():
    """A clone of a MODEL whose runs are watched: `model, watch = watched(model)`. Put it on last."""

    def on(model):
        watch = Watch()
        return watch.on(model), watch

    return on


@pytest.fixture(scope="session")
def small_unet():
    """Makes MODELs of another kind: UNets with random weights that predict noise, sigma from 14.6 down, 4 channels.
    transformers: in each block of a level, for one or two levels."""

    def made(*transformers: int) -> Any:
        config = comfy.supported_models.SD15(
            {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "num_res_blocks": [1] * len(transformers),
                "channel_mult": (1, 2)[: len(transformers)],
                "transformer_depth": [*transformers],
                "transformer_depth_output": [n for n in transformers for _ in range(2)],
                "transformer_depth_middle": 1,
                "use_spatial_transformer": True,
                "context_dim": 768,
                "num_heads": 2,
                "num_head_channels": -1,
                "use_linear_in_transformer": False,
                "adm_in_channels": None,
                "use_temporal_attention": False,
                "legacy": False,
            }
        )
        return random_model(config)

    return made


@pytest.fixture(scope="session")
def tiny_unet(small_unet):
    """Such a MODEL with seven transformers."""
    return small_unet(1, 1)


@pytest.fixture(scope="session")
def small_flux(demo):
    """Makes MODELs for the demo's prompts and latents: `small_flux(depth=2)`, with random weights that are always the same.
    response: factor of the part of the output that depends on latent, sigma and prompt."""
    known = demo.model.model.model_config
    small = {"hidden_size": 64, "num_heads": 2, "axes_dim": [8, 12, 12], "depth": 1, "depth_single_blocks": 1}

    def made(response: float = 0.05, **changes: Any) -> Any:
        model = random_model(type(known)({**known.unet_config, **small, **changes}))
        with torch.no_grad():  # the output changes little from step to step, as that of a trained model does
            model.model.diffusion_model.final_layer.linear.weight.mul_(response)
            model.model.diffusion_model.final_layer.linear.bias.mul_(10)
        return model

    return made


@pytest.fixture(scope="session")
def tiny_flux(small_flux):
    """Such a MODEL of two blocks: it costs a tenth of the demo's."""
    return small_flux()


def random_model(config: Any) -> Any:
    """A MODEL of one of ComfyUI's supported kinds, the same at every call."""
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.diffusion_model.parameters():
            scale = p.shape[1:].numel() ** -0.5 if p.ndim > 1 else 0.1
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)


@pytest.fixture
def user(tmp_path):
    """ComfyUI's user directory: this test's own, and empty."""
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path / "user"))
    yield tmp_path / "user"
    folder_paths.set_user_directory(before)


@pytest.fixture(scope="module")
def steady_memory():
    """On the CPU ComfyUI's attention reads from a file how much memory is free, which no compiler follows; on a GPU it does not."""
    with pytest.MonkeyPatch.context() as patch:
        free = 1 << 34
        patch.setattr(
            comfy.model_management,
            "get_free_memory",
            lambda dev=None, torch_free_too=False: (free, free) if torch_free_too else free,
        )
        trace = logging.getLogger("torch.__trace")  # megabytes, for other tools
        patch.setattr(trace, "propagate", False)
        patch.setattr(trace, "handlers", [])
        yield
