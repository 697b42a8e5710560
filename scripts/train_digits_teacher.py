"""Train the digit network that the package ships: `zoo:digits_teacher`, a conv net 32-64-128 on 8x8 digits.

Run from the repository's root: `python scripts/train_digits_teacher.py`. Selection of the epoch: none, the last.
"""

import dataclasses
import json
from pathlib import Path

import torch

from upcycle.core import lineage, store
from upcycle.core.evaluate import evaluate
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.data import load
from upcycle.distillation import Plain

HERE = Path(__file__).resolve().parent.parent / "src" / "upcycle" / "zoo" / "weights"


def main() -> None:
    """Train, measure once on test, and write weights with their lineage."""
    data = load("digits")
    seed_everything(0, "digits_teacher")
    model = resolve("zoo:convnet", pretrained=False, num_classes=10, input_shape=data.shape)
    mean, std = data.statistics
    data = data.augmented(("crop",)).normalised(mean, std)
    recipe = Recipe(epochs=40, batch_size=64, lr=0.05, warmup=2)
    plain = Plain(student=model.module, recipe=recipe)
    module = plain.fit(Run(None, precision="32-true"), data)
    result = evaluate(module, data.test, device=torch.device("cpu"))
    print(f"test accuracy {result.accuracy:.2%}; mean {mean}, std {std}")
    store.save_tensors(HERE / "digits_teacher.safetensors", module.state_dict())
    tree = lineage.node(
        name="digits_teacher", digest=store.tensor_digest(module.state_dict()), verb="train", method="cross-entropy",
        config={"script": "scripts/train_digits_teacher.py", "recipe": dataclasses.asdict(recipe), "seed": 0},
        data={"name": data.name, "digest": data.digest, "licence": data.licence},
        metrics={"test accuracy": round(result.accuracy, 4)}, licence="Apache-2.0",
    )  # fmt: skip
    (HERE / "digits_teacher.lineage.json").write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
