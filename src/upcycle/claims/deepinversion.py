"""DeepInversion: images descended from noise, pixel by pixel, train a student; noise itself does not."""

from __future__ import annotations

from upcycle.claims import Check, Claim, Headline, gain
from upcycle.claims.data_free import SETTING, deepinversion, noise, outcome


def measure(seed: int, quick: bool) -> dict[str, float]:
    """DeepInversion and noise; the same student and updates."""
    whole = outcome(deepinversion(seed, quick), seed, quick)
    return {
        "DeepInversion (%)": whole.accuracy,
        "noise images (%)": outcome(noise(seed, quick), seed, quick).accuracy,
        "synthesis (s)": whole.seconds,
        "in all (s)": whole.total,
    }


CLAIM = Claim(
    method="deepinversion",
    sentence="Pixels descended to a network's BatchNorm statistics and classes train a student without data.",
    published="CIFAR-10 WRN-40-2 to WRN-16-1 83.04 with 2,000 steps a batch, ResNet-34 to ResNet-18 93.26 (FastDFKD's "
    "official README).",
    setting=f"{SETTING} 12 batches of 100 steps (the papers' 1,000 to 2,000 are out of reach here), then 200 updates "
    "each on all made so far; noise: uniform, as many images and updates.",
    data=("fashion_mnist_local",),
    measure=measure,
    headline=Headline(
        product="DeepInversion (%)",
        baseline="CMI (%)",
        says="DeepInversion over CMI, with as many images, steps and updates",
    ),
    checks=(
        Check(text="it beats noise images by 5 points", value=gain("DeepInversion (%)", "noise images (%)"), bound=5.0),
    ),
)  # fmt: skip
