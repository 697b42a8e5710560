"""Grids that learning rates and weights in the claims were chosen from: a value of an arm, judged by validation images.

Run from the repository's root, for example `python -m benchmarks.claim_grids ssf LoRA 0.003 0.01 0.03`. It prints the
accuracies in per cent, of a seed that no claim has and without a look at test images. The claims keep them as `TRIED`.
"""

from __future__ import annotations

import argparse
import importlib

from upcycle.core.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """Print what each value gives."""
    parser = argparse.ArgumentParser(description="What a value of an arm gives on validation images.")
    parser.add_argument("claim", help="name of a claim that has `on_validation`")
    parser.add_argument("arm", help="one of its `TRIED`")
    parser.add_argument("values", type=float, nargs="+")
    parser.add_argument("--quick", action="store_true", help="the miniature of the claim")
    asked = parser.parse_args(argv)
    claim = importlib.import_module(f"upcycle.claims.{asked.claim}")
    for value in asked.values:
        try:
            found = f"{claim.on_validation(asked.arm, value, asked.quick):.1f}"
        except UserError as error:  # it went to infinity, say
            found = str(error)
        print(f"{asked.claim}, {asked.arm}, {value:g}: {found}", flush=True)


if __name__ == "__main__":
    main()
