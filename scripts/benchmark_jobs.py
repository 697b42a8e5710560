"""The jobs of `docs/benchmarks.md`: what one would use instead, and where the committed results hold the seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
NOTHING = "–"


@dataclass(frozen=True)
class Job:
    """One line.

    Args:
        does: the job, in words.
        instead: what one would use for it otherwise.
        record: the name of the committed result.
        ours: our seconds, from its figures.
        theirs: the seconds of what one would use instead; ``None`` where nothing comparable was timed.
        least: seconds that cannot be undercut; ``None`` where no floor was measured.
        floor: what the floor is, in words.
    """

    does: str
    instead: str
    record: str
    ours: Callable[[Figures], float]
    theirs: Callable[[Figures], float] | None = None
    least: Callable[[Figures], float] | None = None
    floor: str = ""


def _arm(name: str, key: str = "seconds") -> Callable[[Figures], float]:
    return lambda figures: float(figures["arms"][name][key])


def _floor(figures: Figures) -> float:
    return float(figures["floor"])


def _ms(*keys: str) -> Callable[[Figures], float]:
    """Milliseconds below these keys, as seconds."""

    def of(figures: Figures) -> float:
        found: Any = figures
        for key in keys:
            found = found[key]
        return float(found) / 1e3

    return of


def _fastest(place: str, start: str) -> Callable[[Figures], float]:
    """The fastest of the arms whose names begin so, in seconds."""
    return lambda figures: min(v for k, v in figures[place]["milliseconds"].items() if k.startswith(start)) / 1e3


def _least(*keys: str) -> Callable[[Figures], float]:
    """The least of the repetitions below these keys, in seconds."""

    def of(figures: Figures) -> float:
        found: Any = figures
        for key in keys:
            found = found[key]
        return float(min(found["seconds"]))

    return of


def _step_floor(figures: Figures) -> float:
    return _ms("milliseconds", "upcycle")(figures) / float(
        figures["ratios"]["a step over the bf16 matrix-product floor"]
    )


def _synthesis_floor(name: str) -> Callable[[Figures], float]:
    return lambda figures: _ms(f"{name} (ms)")(figures) / float(figures[f"{name} step over its floor"])


def _map(name: str, whose: str) -> Callable[[Figures], float]:
    return lambda figures: float(figures[f"cifar10_resnet20, 8: {name}, ours"][whose]) / 1e3


PRODUCT = "a bf16 matrix product"
TUNED = "a tuned PyTorch script"


def _whole(does: str, record: str) -> Job:
    """A whole command beside the script, above its floor."""
    return Job(does, TUNED, record, _arm("upcycle"), _arm("tuned script"), _floor, PRODUCT)


JOBS = (
    _whole("distil, whole command: 5,000 images of CIFAR-10", "whole_command_cifar-5000"),
    _whole("distil, whole command: 45,000 images of CIFAR-10", "whole_command_cifar-45000"),
    _whole("the same, 8 epochs, teacher's outputs kept", "whole_command_cifar-kept"),
    _whole("distil, whole command: a folder of 2,000 JPEGs", "whole_command_jpeg"),
    Job(
        "distil, whole command: digits, one epoch",
        NOTHING,
        "whole_command_digits",
        _arm("upcycle, one epoch on digits"),
        None,
        _arm("import torch"),
        "importing PyTorch",
    ),
    Job("`make run`: six trainings on digits, and the report", NOTHING, "quickstart", lambda f: float(f["seconds"])),
    Job(
        "a step of distillation, ResNet-56 to ResNet-20",
        "the plain PyTorch loop",
        "kd_step",
        _ms("milliseconds", "upcycle"),
        _ms("milliseconds", "naive float32"),
        _step_floor,
        PRODUCT,
    ),
    Job(
        "the same",
        "torchdistill 1.1.5",
        "kd_step",
        _ms("milliseconds", "upcycle"),
        _ms("milliseconds", "torchdistill 1.1.5"),
        _step_floor,
        PRODUCT,
    ),
    Job(
        "the same step in two processes of one thread each",
        "one process of two threads",
        "two_processes",
        lambda f: float(f["two processes, one thread each"]["step"]),
        lambda f: float(f["one process, two threads"]["step"]),
    ),
    Job(
        "a step of distilling features, one pair of layers",
        NOTHING,
        "features_step",
        _ms("milliseconds", "KD + relations"),
        None,
        _ms("milliseconds", "KD"),
        "a step of KD",
    ),
    Job(
        "the same, two vision transformers",
        "timm's task of feature distillation",
        "features_step",
        _ms("milliseconds", "transformers, KD + hint, the classifier's input"),
        _ms("milliseconds", "timm, feature distillation"),
    ),
    Job(
        "load 10,000 images, crop and flip",
        "torchvision, 2 workers",
        "loading",
        _least("upcycle, crop and flip"),
        _least("torchvision, 2 workers, crop and flip"),
    ),
    Job("Grad-CAM of 8 images", "Captum", "heat_maps", _map("gradcam", "ms"), _map("gradcam", "captum ms")),
    Job("saliency of 8 images", "Captum", "heat_maps", _map("saliency", "ms"), _map("saliency", "captum ms")),
    Job("occlusion of 8 images", "Captum, tuned", "heat_maps", _map("occlusion", "ms"), _map("occlusion", "captum ms")),
    Job(
        "integrated gradients of 8 images",
        "Captum, tuned",
        "attribution",
        _ms("ours, bf16", "minimum_ms"),
        _ms("captum, internal_batch_size=200", "minimum_ms"),
    ),
    Job(
        "diagnose a network",
        "one forward and backward over the images",
        "diagnosis",
        _least("diagnosis"),
        _least("one forward and backward over its images"),
    ),
    Job(
        "a save point of 200 MB, with digests",
        "`torch.save`",
        "save_points",
        lambda f: float(min(f["seconds of each"])),
        lambda f: float(f["torch.save of the same tensors (s)"]),
    ),
    Job(
        "a step of treatment",
        "a step of plain training",
        "diagnosis",
        _least("step of treatment"),
        _least("step of plain training"),
    ),
    Job(
        "synthesise 128 images, a step of FastDFKD",
        NOTHING,
        "data_free_step",
        _ms("fastdfkd (ms)"),
        None,
        _synthesis_floor("fastdfkd"),
        "a matrix product",
    ),
    Job(
        "the same, CMI",
        NOTHING,
        "data_free_step",
        _ms("cmi (ms)"),
        None,
        _synthesis_floor("cmi"),
        "a matrix product",
    ),
    Job(
        "an iteration of a GAN, in one stage",
        "two stages, sparing the discriminator",
        "one_stage_gan",
        _ms("arms", "one stage", "minimum_ms"),
        _ms("arms", "two stages, D's weights spared in G's", "minimum_ms"),
    ),
    Job(
        "decision routes of ten classes",
        NOTHING,
        "mda_routes",
        _least("routes by contribution"),
        None,
        lambda f: float(f["floor_seconds"]),
        "one forward",
    ),
    Job(
        "similarity of 27 by 27 layers (CKA)",
        "Gram matrices, pair by pair",
        "cka",
        _least("upcycle, one product a batch"),
        _least("pair by pair"),
    ),
    Job(
        "judge one candidate network",
        "build it and count",
        "dery_search",
        lambda f: 1 / float(f["upcycle, one by one from tables"]["candidates_per_second"]),
        lambda f: 1 / float(f["each network built and counted"]["candidates_per_second"]),
    ),
    Job(
        "a step of SSF, ViT-Tiny",
        "LoRA in all linear layers (peft)",
        "ssf",
        _ms("SSF", "step_ms"),
        _ms("LoRA, all linear layers", "step_ms"),
    ),
    Job("the same", "full fine-tuning", "ssf", _ms("SSF", "step_ms"), _ms("full fine-tuning", "step_ms")),
    Job(
        "penalty of elastic weight consolidation, ResNet-20",
        "one term for each tensor",
        "continual",
        _ms("penalty", "ResNet-20", "ms"),
        _ms("penalty", "ResNet-20", "separate_ms"),
    ),
    Job(
        "a step of replay (ER)",
        "the same batch without a buffer",
        "continual",
        _ms("replay", "er_ms"),
        _ms("replay", "bare_64_ms"),
    ),
    Job(
        "a step of SAM, ResNet-8",
        "the public loop of SAM",
        "ingredients",
        lambda f: float(f["sharpness"]["seconds"]["SAM"]),
        lambda f: float(f["sharpness"]["seconds"]["SAM, public loop"]),
        lambda f: 2 * float(f["sharpness"]["seconds"]["plain"]),
        "two plain steps",
    ),
    Job(
        "a step of ESAM",
        "a step of SAM",
        "ingredients",
        lambda f: float(f["sharpness"]["seconds"]["ESAM"]),
        lambda f: float(f["sharpness"]["seconds"]["SAM"]),
    ),
    Job(
        "mix 32 images of 224 pixels by CutMix",
        "torchvision's",
        "mixing",
        _ms("milliseconds", "cutmix, 224 pixels"),
        _ms("milliseconds", "cutmix, torchvision, 224 pixels"),
    ),
    Job(
        "a training step on images mixed by SnapMix",
        "a plain step",
        "mixing",
        _ms("milliseconds", "a step with snapmix"),
        _ms("milliseconds", "a plain step"),
    ),
    Job(
        "a new classifier for rare classes (cRT), on features of 50,000 images",
        NOTHING,
        "long_tail_heads",
        lambda f: float(f["seconds of a head"]["crt"]),
    ),
    Job(
        "a step of a masked autoencoder",
        "transformers",
        "cmae_step",
        _ms("milliseconds, 28 x 28, 96 x 4", "without contrast"),
        _ms("milliseconds, 28 x 28, 96 x 4", "transformers"),
    ),
    Job(
        "gather 131 molecules as one batch",
        "PyTorch Geometric",
        "graphs",
        _ms("collating", "upcycle"),
        _ms("collating", "torch_geometric"),
    ),
    Job(
        "a training step of GAT on Cora",
        "the same layers on a dense table",
        "graphs",
        _ms("gat_step", "upcycle, sparse"),
        _ms("gat_step", "torch_geometric, dense"),
    ),
    Job(
        "three tasks of nodes under TWP",
        "a plain loop over a dense table",
        "graph_streams",
        lambda f: float(f["seconds"]["upcycle"]),
        lambda f: float(f["seconds"]["plain loop"]),
    ),
    Job(
        "shortest paths of a graph of 20,000 nodes",
        NOTHING,
        "graph_paths",
        lambda f: float(f["random"]["seconds"]),
    ),
    Job(
        "a step of FactorGCN, four factors",
        NOTHING,
        "factor_step",
        _ms("milliseconds", "factors"),
        None,
        _ms("milliseconds", "graph convolutions"),
        "a GCN's of equal width",
    ),
    Job(
        "a training step of a spiking network, 8 steps",
        "snntorch",
        "spiking",
        _ms("milliseconds", "spiking, through time"),
        _ms("milliseconds", "snntorch, through time"),
        lambda f: 8 * _ms("milliseconds", "ordinary network")(f),
        "8 steps of the ordinary network",
    ),
    Job(
        "a step of TinyMIM, ViT 96x4 to 48x3",
        NOTHING,
        "tinymim_step",
        _ms("milliseconds", "a step"),
        None,
        _ms("milliseconds", "its multiply-adds at the rate of matrix products"),
        "its multiply-adds",
    ),
    Job(
        "an iteration of GFKD",
        "the same over lists of edges",
        "gfkd_step",
        _ms("milliseconds", "dense blocks"),
        _ms("milliseconds", "lists of edges"),
    ),
    Job(
        "put a block into a ResNet-50, and load what was saved",
        NOTHING,
        "swap",
        lambda f: float(f["both"]["best_seconds"]),
        None,
        lambda f: 2 * float(f["copy"]["best_seconds"]) + float(f["timm and safetensors"]["best_seconds"]),
        "two copies and timm's own loading",
    ),
    Job(
        "forward and backward of EMO-1M, 8 images of 224 pixels",
        "the published formulas, written down",
        "zoo_emo",
        _ms("EMO-1M", "milliseconds", "ours"),
        _fastest("EMO-1M", "plain"),
    ),
    Job(
        "the same, Shunted-T",
        "the published formulas, written down",
        "zoo_emo",
        _ms("Shunted-T", "milliseconds", "ours"),
        _fastest("Shunted-T", "plain"),
    ),
    Job(
        "the same, CAFormer-S18",
        "timm, in its order of memory",
        "zoo_blocks",
        _ms("CAFormer-S18, 8 images of 224 pixels", "milliseconds", "as a run has it"),
        _fastest("CAFormer-S18, 8 images of 224 pixels", "timm's"),
    ),
    Job(
        "coordinate attention, forward and backward",
        "timm's, in its better order of memory",
        "zoo_blocks",
        _fastest("coordinate attention, 8 maps of 96 x 56 x 56", "ours"),
        _fastest("coordinate attention, 8 maps of 96 x 56 x 56", "timm's"),
    ),
    Job(
        "Euler's steps of an ODE network, and their gradient",
        "torchdiffeq",
        "euler",
        _ms("ours, and backward (ms)"),
        _ms("torchdiffeq, and backward (ms)"),
    ),
    Job(
        "a vision transformer with half of its tokens polled (PnP)",
        "the network without",
        "pnp_latency",
        _ms("timm:vit_tiny_patch16_224", "0.50", "ms"),
        _ms("timm:vit_tiny_patch16_224", "without", "ms"),
    ),
)
