"""The words that other libraries have for what has a name here, and the name that is meant by one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MEANT: dict[str, tuple[str, ...]] = {
    # training
    "n_epochs": ("recipe.epochs",),
    "num_epochs": ("recipe.epochs",),
    "num_train_epochs": ("recipe.epochs",),
    "max_epochs": ("recipe.epochs",),
    "epoch": ("recipe.epochs",),
    "learning_rate": ("recipe.lr", "lr"),
    "lr0": ("recipe.lr", "lr"),
    "rate": ("recipe.lr", "lr"),
    "base_lr": ("recipe.lr", "lr"),
    "bs": ("recipe.batch_size", "batch_size"),
    "batch": ("recipe.batch_size", "batch_size"),
    "per_device_train_batch_size": ("recipe.batch_size", "batch_size"),
    "wd": ("recipe.weight_decay",),
    "decay_rate": ("recipe.decay",),
    "opt": ("recipe.optimizer",),
    "optim": ("recipe.optimizer",),
    "sched": ("recipe.schedule",),
    "scheduler": ("recipe.schedule",),
    "lr_scheduler": ("recipe.schedule",),
    "warmup_epochs": ("recipe.warmup",),
    "sam": ("recipe.sharpness",),
    "mixup": ("recipe.mix",),
    "cutmix": ("recipe.mix",),
    # the run
    "output": ("out",),
    "output_dir": ("out",),
    "out_dir": ("out",),
    "save_dir": ("out",),
    "project": ("out",),
    "o": ("out",),
    "random_seed": ("seed",),
    "num_seeds": ("seeds",),
    "n_seeds": ("seeds",),
    "device": ("accelerator",),
    "cuda": ("accelerator",),
    "cpu": ("accelerator",),
    "gpu": ("accelerator",),
    "gpus": ("devices",),
    "num_gpus": ("devices",),
    "nproc_per_node": ("devices",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "amp": ("precision",),
    "mixed_precision": ("precision",),
    "half": ("precision", "accelerator"),
    "continue": ("resume",),
    "resume_from_checkpoint": ("resume",),
    "silent": ("quiet",),
    "force": ("overwrite",),
    "exist_ok": ("overwrite", "resume"),
    "torch_compile": ("compile",),
    "save_interval": ("save_every",),
    "save_steps": ("save_every",),
    # data and networks
    "dataset": ("data", "stream"),
    "dataset_name": ("data", "stream"),
    "data_dir": ("data", "stream"),
    "train_dir": ("data", "stream"),
    "data_path": ("data", "stream"),
    "val_data": ("test_data",),
    "testset": ("test_data",),
    "model": ("student", "zoo", "model"),
    "model_name": ("student", "zoo"),
    "arch": ("student",),
    "teacher_model": ("teacher",),
    "student_model": ("student",),
    "checkpoint": ("teacher_weights", "weights"),
    "ckpt": ("teacher_weights", "weights"),
    "pretrained": ("teacher_weights", "weights"),
    "teacher_checkpoint": ("teacher_weights",),
    "img_size": ("size",),
    "image_size": ("size",),
    "imgsz": ("size",),
    "input_size": ("size",),
    "augmentation": ("augment",),
    "few_shot": ("shots",),
    "class_names": ("classes", "teacher_classes"),
    "trust_remote_code": ("trust",),
    "remote_code": ("trust",),
    "models": ("zoo",),
    # losses and methods
    "t": ("terms.temperature", "temperature"),
    "tau": ("terms.temperature", "temperature"),
    "temp": ("terms.temperature", "temperature"),
    "alpha": ("terms.w_kd",),
    "kd_weight": ("terms.w_kd",),
    "distill_loss": ("method",),
    "algorithm": ("method",),
    "distiller": ("method",),
    "hinton": ("kd",),
    "logits": ("kd",),
    "vanilla": ("kd", "plain"),
    "fitnet": ("features",),
    "fitnets": ("features",),
    "hint": ("features",),
    "deep_inversion": ("deepinversion",),
    "scratch": ("plain",),
    "supervised": ("plain",),
    "der": ("derpp",),
    "replay": ("er",),
    "experience_replay": ("er",),
    # data sets and networks of the zoo
    "fashion": ("fashion_mnist",),
    "fmnist": ("fashion_mnist",),
    "cifar": ("cifar10",),
    "cifar_10": ("cifar10",),
    "sklearn": ("digits",),
}
"""Of a word, as it is folded below without its dashes, the names that it stands for; the first that is known counts."""


def same_name(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` is when case and hyphens are nothing, or none.

    >>> same_name("Fashion-MNIST", ["mnist", "fashion_mnist"])
    'fashion_mnist'
    """
    names = list(known)
    return word if word in names else next((name for name in names if folded(name) == folded(word)), None)


def folded(word: str) -> str:
    """A name without what people write differently."""
    return word.strip().lower().lstrip("-").replace("-", "_")


def meant(word: str, known: Iterable[str]) -> str | None:
    """The known name that somebody probably means: by what the word means elsewhere, then by its letters.

    >>> meant("--learning-rate", ["--trust", "--recipe.lr"])
    '--recipe.lr'
    """
    names, text = list(known), folded(word)
    if text and (found := same_name(text, names)) is not None:
        return found
    bare = {name.lstrip("-"): name for name in reversed(names)}
    last = {name.rpartition(".")[2]: bare[name] for name in bare}  # the first of several
    for wanted in MEANT.get(text, ()):
        if wanted in bare:
            return bare[wanted]
    if text in last:
        return last[text]
    by_letters = {**{key.lower(): name for key, name in last.items()}, **{key.lower(): n for key, n in bare.items()}}
    near = difflib.get_close_matches(text, by_letters, n=1, cutoff={1: 0.8, 2: 0.8, 3: 0.6}.get(len(text), 0.5))
    return by_letters[near[0]] if near else None
