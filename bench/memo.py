"""Time saved by the memo: pictures and prompts in a real ComfyUI server, with it and without, restarts between.

make bench-memo   (prints a table; writes bench-output/memo.json; on one core about a quarter of an hour)

img2img_ratio        three variations of a picture of 1024 x 1024, each on a freshly started server, with Cached VAE Encode and
                     Cached Text Encode over the same with ComfyUI's own nodes. Counted from the start to the end of the prompts:
                     all that the graph does, with the first variation's encode, and without the servers' start.
                     The VAE is Flux' (its real layers, random weights). What the memo does not touch is kept small, for it is the
                     same with and without, and would only hide what is measured: one step of the demo's small Flux is
                     sampled (on the full latent), and the graph ends with the latent. With more steps the ratio nears 1.
hit_share_of_encode  a latent from the disk, hashing and all, over encoding it
encoder_loads_on_hit times that a VAE or a text encoder was built or loaded on the servers of the second and third variation
hit_rate_vae         20 variations of 3 pictures, in turn, through Memo VAE and VAE Encode on one server
hit_rate_text        30 prompts of 10, shuffled, through Memo CLIP and CLIP Text Encode on that server
                     (both with --cache-classic: what ComfyUI itself still has is never asked of the memo, and is not counted)
hash_gb_s            naming one picture of 1024 x 1024, the fastest of 30 times (a moment's rate: what else runs only lowers it)
*_hit_ms             a latent of 1 x 16 x 128 x 128 floats from one tier alone, medians; Redis and an S3-compatible store (moto's server)
                     on loopback, null without one. *_fastest_ms: the fastest of 30, which other work on the machine disturbs least
known_again_*_s      a text encoder of 2 GB (fp16, random weights): seconds of loading its file and of its fingerprint in a new
                     process, with the file's pages dropped from the system's cache before (cold) and without (warm).
                     *_fingerprint_s: of the fingerprint alone, which is what the cache adds to loading
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "bench-output"
from served import Server, ran, running, took, upload, wait_until_up  # noqa: E402

MODELS = ROOT / "demo" / "models"
STEPS, VARIATIONS, PICTURES, SESSION = 1, 3, 3, 20
PROMPTS = [
    f"a {colour} {shape}" for colour in ("red", "green", "blue", "white", "black") for shape in ("circle", "square")
]
ASKED = 3  # times, each prompt
ROUNDS = 30
BUILT = (
    "VAE load device",
    "CLIP/text encoder model load device",
    "Requested to load Autoenc",
    "Requested to load SD1Clip",
)

Graph = dict[str, Any]


def img2img(memo: bool, picture: str, seed: int, text: str, vae: str, steps: int) -> Graph:
    """The graph of a variation. memo: with the nodes that need no encoder for what they know."""
    encode, prompt = (
        ("SkipstoneCachedVAEEncode", "SkipstoneCachedTextEncode") if memo else ("VAEEncode", "CLIPTextEncode")
    )
    graph: dict[str, tuple[str, dict[str, Any]]] = {
        "unet": ("UNETLoader", {"unet_name": "skipstone_demo_flux.safetensors", "weight_dtype": "default"}),
        "clip": ("CLIPLoader", {"clip_name": "skipstone_demo_clip.pt", "type": "stable_diffusion"}),
        "vae": ("VAELoader", {"vae_name": vae}),
        "image": ("LoadImage", {"image": picture}),
        "latent": (encode, {"image" if memo else "pixels": ["image", 0], "vae": ["vae", 0]}),
        "positive": (prompt, {"text": text, "clip": ["clip", 0]}),
        "sampled": (
            "KSampler",
            {"model": ["unet", 0], "positive": ["positive", 0], "negative": ["positive", 0], "latent_image": ["latent", 0],
             "seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.6},
        ),
        "save": ("SaveLatent", {"samples": ["sampled", 0], "filename_prefix": "variation"}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def session(picture: str, text: str, seed: int) -> Graph:
    """A variation with the encoders that remember and ComfyUI's own encode nodes."""
    graph = img2img(False, picture, seed, text, "skipstone_demo_vae.safetensors", 1)
    graph["memo_vae"] = {"class_type": "SkipstoneMemoVAE", "inputs": {"vae": ["vae", 0], "decode": False}}
    graph["memo_clip"] = {"class_type": "SkipstoneMemoCLIP", "inputs": {"clip": ["clip", 0]}}
    graph["latent"]["inputs"]["vae"] = ["memo_vae", 0]
    graph["positive"]["inputs"]["clip"] = ["memo_clip", 0]
    return graph


class Bench:
    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.comfyui = folder, size, Path(os.environ["COMFYUI_PATH"])
        self.threads = len(os.sched_getaffinity(0))
        # in a folder of its own: where files are made as a server runs, the cache does not trust a name
        self.vae = folder / "vae" / "bench_flux_vae.safetensors"
        self.vae.parent.mkdir()
        self.logs = 0
        os.environ["SKIPSTONE_MEMO_FOLDER"] = str(folder / "memo")
        os.environ["SKIPSTONE_PROVIDER"] = "0"

    @contextmanager
    def server(self, *options: str) -> Iterator[Server]:
        self.logs += 1
        models = {
            "diffusion_models": [MODELS / "skipstone_demo_flux.safetensors"],
            "text_encoders": [MODELS / "skipstone_demo_clip.pt"],
            "vae": [self.vae, MODELS / "skipstone_demo_vae.safetensors"],
        }
        log = self.folder / f"{self.logs}.log"
        with running(self.comfyui, {"skipstone": ROOT}, models, self.threads, log, options) as server:
            wait_until_up(server)
            yield server

    def variations(self) -> tuple[list[float], list[float], list[int]]:
        """Seconds of each variation without the memo and with it, and how often an encoder was built or loaded with it."""
        seconds: dict[bool, list[float]] = {False: [], True: []}
        loads = []
        for seed in range(VARIATIONS):
            for memo in (False, True):  # in turn: what else the machine does at the time weighs on both
                with self.server() as server:
                    upload(server, "picture.png", png(0, self.size))
                    graph = img2img(memo, "picture.png", seed, "a picture in other colours", self.vae.name, STEPS)
                    seconds[memo].append(took(ran(server, graph)))
                    time.sleep(1.0)  # what waits to be written
                    log = server.log.read_text(errors="replace")
                loaded = sum(log.count(word) for word in BUILT)
                if memo:
                    loads.append(loaded)
                told = f"variation {seed + 1} {'with the memo' if memo else 'without'}: {seconds[memo][-1]:.1f} s"
                print(f"{told}, {loaded} encoders built or loaded", flush=True)
        return seconds[False], seconds[True], loads

    def rates(self) -> tuple[float, float]:
        """Hit rates of a session of pictures and of one of prompts."""
        prompts = shuffled(PROMPTS * ASKED)
        with self.server("--cache-classic") as server:
            for i in range(PICTURES):
                upload(server, f"{i}.png", png(i, 128))
            for seed in range(SESSION):  # one prompt, which ComfyUI itself keeps
                ran(server, session(f"{seed % PICTURES}.png", "a picture", seed))
            pictures = self._counts(server)["vae"]
            before = self._counts(server)["text"]
            for seed, text in enumerate(prompts):
                ran(server, session("0.png", text, seed))
            after = self._counts(server)["text"]
        asked = after[1] - before[1]
        assert (pictures[1], asked) == (SESSION, len(prompts)), "ComfyUI's own cache answered"
        return pictures[0] / pictures[1], (after[0] - before[0]) / asked

    @staticmethod
    def _counts(server: Server) -> dict[str, tuple[int, int]]:
        """Hits and what was asked for, by kind."""
        from skipstone.core.memo.stats import WORDS

        graph = {"stats": {"class_type": "SkipstoneMemoStats", "inputs": {}}}
        text = ran(server, graph)["outputs"]["stats"]["text"][0]
        found = re.findall(r"^(\w+): (\d+) of (\d+) reused", text, re.MULTILINE)
        kinds = {word: kind for kind, word in WORDS.items()}
        return {kinds[word]: (int(hits), int(asked)) for word, hits, asked in found if word in kinds}

    def encode_and_hit(self) -> tuple[float, float]:
        """Seconds of an encode, and of its hit on the disk, of the servers' picture with the servers' VAE, in this process."""
        import comfy.sd
        import comfy.utils
        import numpy as np
        import torch
        from PIL import Image

        from skipstone.core.memo.store import Store
        from skipstone.core.memo.tiers.disk import DiskTier
        from skipstone.patch.memo import instance
        from skipstone.patch.memo.encoders import memo_vae

        torch.set_num_threads(self.threads)
        store = Store([DiskTier(self.folder / "memo", spare=0)])
        store.ready(10)
        instance.set_store(store)
        sd, metadata = comfy.utils.load_torch_file(str(self.vae), return_metadata=True)
        vae = memo_vae(comfy.sd.VAE(sd=sd, metadata=metadata))
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png(0, self.size)))).astype(np.float32) / 255.0)[None]
        with torch.inference_mode():
            vae.encode(pixels)
            store.flush(30)
            hit = median(lambda: vae.encode(pixels))
        told = store.report()["kinds"]["vae"]
        instance.set_store(None)
        store.close()
        assert told["hits"] >= ROUNDS
        if told["misses"]:
            print("the servers' latent is not known in this process: it was encoded once more")
        # an entry carries what its computing cost
        return (told["saved_seconds"] + told["hits"] * hit) / told["hits"], hit

    def tiers(self) -> dict[str, tuple[float, float] | None]:
        """Milliseconds of a hit, by tier: the median and the fastest."""
        import torch

        from skipstone.core.memo.keys import key
        from skipstone.core.memo.store import Store
        from skipstone.core.memo.tiers.base import Tier
        from skipstone.core.memo.tiers.disk import DiskTier
        from skipstone.core.memo.tiers.memory import MemoryTier
        from skipstone.core.memo.tiers.redis import RedisTier
        from skipstone.core.memo.tiers.s3 import S3Tier

        name, latent = key("vae", "latent"), torch.randn(1, 16, 128, 128)

        def measured(tier: Tier) -> tuple[float, float]:
            store = Store([tier])
            try:
                assert store.ready(10), f"{tier.name} does not serve"
                store.put(name, {"value": latent, "places": ["output"]}, 1.0)
                store.flush(10)
                assert torch.equal(store.get(name)["value"], latent)
                times = times_of(lambda: store.get(name))
                return 1000 * statistics.median(times), 1000 * min(times)
            finally:
                store.close()

        told: dict[str, tuple[float, float] | None] = {
            "memory": measured(MemoryTier(1 << 28, reserve=0)),
            "disk": measured(DiskTier(self.folder / "tier", spare=0)),
            "redis": None,
            "s3": None,
        }
        with redis_server(self.folder) as url:
            if url:
                told["redis"] = measured(RedisTier(url))
        with s3_store(self.folder) as endpoint:
            if endpoint:
                told["s3"] = measured(S3Tier("s3://bucket", endpoint))
        return told

    def known_again(self) -> dict[str, float]:
        """Seconds in which an encoder of 2 GB is loaded and known in a new process, cold and warm, and of its fingerprint alone."""
        file = self.folder / "encoder.safetensors"
        write_encoder(file)
        told = {}
        for state in ("cold", "warm"):
            if state == "cold":
                drop_pages(file)
            command = [sys.executable, __file__, "--fingerprint", str(file)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            loading, told[f"{state}_fingerprint"] = map(float, answer.split()[-2:])
            told[state] = loading + told[f"{state}_fingerprint"]
        file.unlink()
        return told


def write_encoder(path: Path) -> None:
    """A T5 of 2 GB in float16 with random weights; one layer's are repeated in all, as making them takes long."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q": (2048, 2048),
        "self_attn.k": (2048, 2048),
        "mlp.up": (5120, 2048),
        "mlp.down": (2048, 5120),
    }
    layer = {name: (torch.randn(shape, generator=generator) * 0.02).half() for name, shape in shapes.items()}
    weights = {f"layers.{i}.{name}.weight": weight.clone() for i in range(34) for name, weight in layer.items()}
    save_file(weights, path)
    os.sync()


def drop_pages(path: Path) -> None:
    """Have the system read a file from the disk next time."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fingerprint_seconds(path: Path) -> tuple[float, float]:
    """Of loading an encoder's weights from a file with ComfyUI's function, and of its fingerprint."""
    import comfy.model_patcher
    import comfy.utils
    import torch

    from skipstone.patch.memo import fingerprint
    from skipstone.patch.memo.environment import environment_digest

    begun = time.perf_counter()
    weights = comfy.utils.load_torch_file(str(path))
    loading = time.perf_counter() - begun
    network = torch.nn.Module()
    for name, weight in weights.items():
        network.register_parameter(name.replace(".", "_"), torch.nn.Parameter(weight, requires_grad=False))

    class Encoder:
        pass

    encoder: Any = Encoder()
    encoder.model = network
    encoder.patcher = comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    environment_digest(torch.device("cpu"))  # is needed once in a process, whatever the encoder
    started = time.perf_counter()
    fingerprint.of_model(encoder)
    return loading, time.perf_counter() - started


def median(function: Callable[[], object]) -> float:
    """Seconds."""
    return statistics.median(times_of(function))


def times_of(function: Callable[[], object]) -> list[float]:
    """Seconds, each time."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


def hashing(size: int) -> float:
    """GB a second."""
    import torch

    from skipstone.core.memo.keys import digest

    pixels = torch.rand(1, size, size, 3)
    return pixels.nbytes / min(times_of(lambda: digest(pixels))) / 1e9


def shuffled(texts: list[str]) -> list[str]:
    """A fixed order in which no entry follows itself."""
    chance = random.Random(0)
    while True:
        chance.shuffle(texts)
        if all(a != b for a, b in pairwise(texts)):
            return texts


def png(seed: int, size: int) -> bytes:
    """A picture with something everywhere."""
    import numpy as np
    from PIL import Image

    rough = np.random.default_rng(seed).integers(0, 256, (size // 32, size // 32, 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(rough).resize((size, size), Image.Resampling.BICUBIC).save(made, "PNG")
    return made.getvalue()


def write_vae(path: Path) -> None:
    """Flux' VAE, layer for layer, with random weights that keep numbers in bounds."""
    import torch
    from comfy.ldm.models.autoencoder import AutoencodingEngine
    from safetensors.torch import save_file

    shape = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
             "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    parts = "comfy.ldm.modules.diffusionmodules.model."
    made = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": f"{parts}Encoder", "params": shape},
        decoder_config={"target": f"{parts}Decoder", "params": shape},
    )
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, weight in made.state_dict().items():
        if weight.ndim > 1:
            weights[name] = torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5
        else:
            weights[name] = torch.full(weight.shape, float("norm" in name and name.endswith("weight")))
    save_file(weights, path)
    old = time.time() - 3600  # not younger than the servers: they would not trust it
    os.utime(path, (old, old))
    time.sleep(3.0)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The address of a Redis of our own; "" where there is none on this machine."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    try:
        import redis
    except ImportError:
        program = None
    if program is None:
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen([program, "--port", str(port), *quiet], stdout=subprocess.DEVNULL)
    address = f"redis://127.0.0.1:{port}"
    try:
        with redis.Redis.from_url(address) as client:
            _until(client.ping)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def s3_store(folder: Path) -> Iterator[str]:
    """The endpoint of an S3-compatible store of our own with a bucket `bucket`; "" where there is none on this machine."""
    packages = os.environ.get("S3_SERVER")
    try:
        import boto3
    except ImportError:
        packages = None
    if not packages:
        yield ""
        return
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_EC2_METADATA_DISABLED": "true"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": packages}, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")
        _until(lambda: client.create_bucket(Bucket="bucket"), 30.0)
        yield endpoint
    finally:
        process.terminate()
        process.wait(10)


def _until(ask: Callable[[], object], seconds: float = 10.0) -> None:
    """Ask until it succeeds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask()
            return
        except Exception:  # the package is optional, and so are the names of its errors
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the memo saves, measured.")
    parser.add_argument("--size", type=int, default=1024, help="width and height of the variations' picture")
    parser.add_argument("--fingerprint", type=Path, help=argparse.SUPPRESS)  # what known_again() runs in a new process
    parser.add_argument(
        "--tiers", action="store_true", help="only the times of hits by tier, and of knowing an encoder again"
    )
    asked = parser.parse_args()
    sys.argv[1:] = []  # ComfyUI reads them too
    size = asked.size
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # as the servers are
    if asked.fingerprint:
        print(*fingerprint_seconds(asked.fingerprint))
        return
    if asked.tiers:
        with tempfile.TemporaryDirectory(prefix="skipstone-memo-") as folder:
            bench = Bench(Path(folder), size)
            print(bench.tiers(), bench.known_again())
        return
    with tempfile.TemporaryDirectory(prefix="skipstone-memo-") as folder:
        bench = Bench(Path(folder), size)
        write_vae(bench.vae)
        without, with_memo, loads = bench.variations()
        assert loads[0] > 0, "the log does not tell of encoders"
        encode, hit = bench.encode_and_hit()
        vae, text = bench.rates()
        tiers, again = bench.tiers(), bench.known_again()
    told = {
        "img2img_ratio": round(sum(with_memo) / sum(without), 3),
        "hit_share_of_encode": round(hit / encode, 6),
        "encoder_loads_on_hit": sum(loads[1:]),
        "hash_gb_s": round(hashing(size), 2),
        "hit_rate_vae": round(vae, 3),
        "hit_rate_text": round(text, 3),
        **{f"{tier}_hit_ms": None if ms is None else round(ms[0], 2) for tier, ms in tiers.items()},
        **{f"{tier}_fastest_ms": None if ms is None else round(ms[1], 2) for tier, ms in tiers.items()},
        **{f"known_again_{state}_s": round(seconds, 2) for state, seconds in again.items()},
        "load_average": round(os.getloadavg()[0], 1),
        "encode_seconds": round(encode, 1),
        "seconds_without": [round(s, 1) for s in without],
        "seconds_with": [round(s, 1) for s in with_memo],
        "threads": bench.threads,
    }
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "memo.json").write_text(json.dumps(told, indent=1) + "\n")
    print()
    for name, value in told.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
