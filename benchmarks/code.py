"""Which code a benchmark measures, and whether that code has changed since the record was made.

A record holds a digest of the code that it measured, without comments, documentation and layout. The table of
`docs/benchmarks.md` marks the records whose digest is no longer that of the code. Records made before there were such
digests get theirs from the commit that they name: `python -m benchmarks.code`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SRC = "src/upcycle"

STEP = (
    f"{SRC}/distillation/kd.py",
    f"{SRC}/core/run.py",
    f"{SRC}/core/frozen.py",
    f"{SRC}/core/losses.py",
    f"{SRC}/data/memory.py",
    f"{SRC}/data/augment.py",
)
COMMAND = (
    *STEP,
    f"{SRC}/verbs/distill.py",
    f"{SRC}/verbs/session.py",
    f"{SRC}/data/sources.py",
    f"{SRC}/data/decode.py",
    f"{SRC}/data/cache.py",
    f"{SRC}/core/probe.py",
    f"{SRC}/core/inputs.py",
)
WHOLE = ("digits", "cifar-5000", "cifar-45000", "cifar-kept", "jpeg")

MEASURED: dict[str, tuple[str, ...]] = {
    **{f"whole_command_{part}": (*COMMAND, "benchmarks/plain_distillation.py") for part in WHOLE},
    "quickstart": (*COMMAND, "recipes/quickstart.yaml"),
    "kd_step": STEP,
    "two_processes": (*STEP, *(f"{SRC}/core/{name}.py" for name in ("collective", "devices", "evaluate", "once"))),
    "loading": (f"{SRC}/data/memory.py", f"{SRC}/data/augment.py", f"{SRC}/data/images.py"),
    "startup": (f"{SRC}/__init__.py", f"{SRC}/cli.py", f"{SRC}/core/probe.py", f"{SRC}/core/inputs.py"),
    "save_points": (
        f"{SRC}/core/stage.py",
        f"{SRC}/core/checkpoint.py",
        f"{SRC}/core/store.py",
    ),
    "graphs": (
        f"{SRC}/core/graph_inputs.py",
        f"{SRC}/data/graphs.py",
        f"{SRC}/data/fair_tables.py",
        f"{SRC}/zoo/gnn.py",
    ),
    "features_step": (
        *STEP,
        f"{SRC}/distillation/features.py",
        f"{SRC}/distillation/layer_pairs",
        f"{SRC}/core/taps.py",
    ),
    "gfkd_step": (f"{SRC}/distillation/graph_free",),
    "spiking": (
        f"{SRC}/zoo/spiking.py",
        f"{SRC}/distillation/ltl.py",
        f"{SRC}/distillation/spikes/rates.py",
    ),
    "factor_step": (
        f"{SRC}/zoo/factorgcn.py",
        f"{SRC}/zoo/factor_messages.py",
        f"{SRC}/distillation/factorgcn.py",
    ),
    "tinymim_step": (
        f"{SRC}/distillation/tinymim.py",
        f"{SRC}/core/attention.py",
        f"{SRC}/core/taps.py",
        f"{SRC}/zoo/vit.py",
    ),
    "graph_streams": (f"{SRC}/continual/twp.py", f"{SRC}/core/edge_attention.py"),
    "graph_paths": (f"{SRC}/distillation/paths/shortest.py", f"{SRC}/distillation/paths/attention.py"),
    "heat_maps": (f"{SRC}/diagnosis/attribution",),
    "attribution": (f"{SRC}/diagnosis/attribution",),
    "data_free_step": (
        f"{SRC}/distillation/cmi.py",
        f"{SRC}/distillation/fastdfkd.py",
        f"{SRC}/distillation/data_free",
    ),
    "ingredients": (
        f"{SRC}/core/meetings.py",
        f"{SRC}/core/run.py",
        f"{SRC}/core/stage.py",
        f"{SRC}/core/updates.py",
        f"{SRC}/training/esam.py",
    ),
    "mixing": (f"{SRC}/training/mix.py", f"{SRC}/training/percent_maps.py"),
    "long_tail_heads": (f"{SRC}/core/heads.py", f"{SRC}/core/guide.py", f"{SRC}/diagnosis/long_tail"),
    "one_stage_gan": (f"{SRC}/training/simultaneous.py",),
    "mda_routes": (f"{SRC}/assembly/disassembly", f"{SRC}/assembly/mda.py"),
    "cka": (f"{SRC}/measure/similarity.py",),
    "dery_search": (f"{SRC}/assembly/reassembly",),
    "swap": (
        f"{SRC}/surgery/operate.py",
        f"{SRC}/surgery/places.py",
        f"{SRC}/surgery/looking.py",
        f"{SRC}/core/saved.py",
    ),
    "zoo_emo": (f"{SRC}/zoo/emo.py", f"{SRC}/zoo/shunted.py", f"{SRC}/zoo/layers.py"),
    "zoo_blocks": (f"{SRC}/zoo/metaformer.py", f"{SRC}/zoo/mobilenetv2.py", f"{SRC}/surgery/inserts"),
    "euler": (f"{SRC}/core/euler.py", f"{SRC}/zoo/odenet.py"),
    "pnp_latency": (f"{SRC}/surgery/inserts", f"{SRC}/surgery/ratio.py"),
    "diagnosis": (f"{SRC}/diagnosis/errors", f"{SRC}/diagnosis/model_doctor.py"),
    "cmae_step": (
        f"{SRC}/adaptation/cmae.py",
        f"{SRC}/adaptation/masked/parts.py",
        f"{SRC}/core/tokens.py",
        f"{SRC}/zoo/vit.py",
    ),
    "ssf": (f"{SRC}/adaptation/ssf.py", f"{SRC}/adaptation/adapters"),
    "continual": (f"{SRC}/continual/weights", f"{SRC}/continual/er.py", f"{SRC}/continual/derpp.py"),
    "dine_cache": (f"{SRC}/predictors", f"{SRC}/adaptation/black_box/answers.py"),
}
"""By record, the files and folders that decide its figures."""

LAYOUT = re.compile(r"[\s,(){}'\"\\]")  # what a formatter may change


def essence(source: str) -> str:
    """A Python file without comments, docstrings and layout, so that only a change of what it does shows."""
    kept: list[str] = []
    before = tokenize.NEWLINE  # a string behind the end of a statement stands alone: a docstring
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if not (token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)):
            kept.append(token.string)
        before = token.type
    return LAYOUT.sub("", "".join(kept))


def digest(files: dict[str, str]) -> str:
    """A digest of files by name; of those that are Python only what they do counts."""
    found = hashlib.sha256()
    for name, text in sorted(files.items()):
        found.update(f"{name}\0{essence(text) if name.endswith('.py') else text}\0".encode())
    return found.hexdigest()[:16]


def here(record: str) -> str:
    """The digest of the code that a benchmark measures, as it is in the working tree."""
    files: dict[str, str] = {}
    for place in MEASURED[record]:
        path = ROOT / place
        found = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
        files |= {file.relative_to(ROOT).as_posix(): file.read_text() for file in found}
    return digest(files)


def at(record: str, commit: str) -> str | None:
    """The same of a commit; ``None`` where the repository does not have it."""
    listed = _git("ls-tree", "-r", "--name-only", commit, "--", *MEASURED[record])
    if listed is None:
        return None
    python: Callable[[str], bool] = lambda name: name.endswith(".py") or name in MEASURED[record]  # noqa: E731
    files = {name: _git("show", f"{commit}:{name}") or "" for name in filter(python, listed.splitlines())}
    return digest(files)


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def is_older(name: str, record: dict[str, Any]) -> bool:
    """Whether the code that a record measured is no longer what it was; also where nobody knows."""
    return bool(record.get("code") != here(name))


def main() -> None:
    """Give the records that have none the digest of the code of their commit."""
    for name in MEASURED:
        file = RESULTS / f"{name}.json"
        if not file.is_file() or "code" in (record := json.loads(file.read_text())):
            continue
        code = at(name, record["commit"].removesuffix("+"))
        if code is None:
            print(f"{file.name}: its commit {record['commit']} is not here")
            continue
        dated = {**{key: record[key] for key in ("benchmark", "date", "commit")}, "code": code}
        file.write_text(json.dumps(dated | record, indent=1, ensure_ascii=False) + "\n")
        print(f"{file.name}: {code}, {'older than' if code != here(name) else 'as'} the code")


if __name__ == "__main__":
    main()
