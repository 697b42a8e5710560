"""Fill the marked blocks of the documentation from the cards and from the committed results.

A block stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``. ``python -m scripts.docs`` writes all
blocks again; with ``--check`` it writes nothing and exits with 1 when a file would change.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.code import WHOLE

from scripts import long_tail_figures, pages
from scripts.benchmark_table import benchmark_table
from scripts.matrix import matrix
from scripts.tables import figures_table, number, percent, provenance, table, words
from upcycle import described, losses
from upcycle.claims import all_claims, find
from upcycle.claims.found import FILE as FOUND
from upcycle.claims.found import found as shipped
from upcycle.claims.found import short
from upcycle.commands import SUMMARY, TABLE
from upcycle.core.ingredients import INGREDIENTS
from upcycle.core.licences import TERMS
from upcycle.core.method import Method
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.measure.units import bytes_, duration, si
from upcycle.verbs.method_page import page
from upcycle.verbs.methods import all_methods, why_not
from upcycle.zoo import ENTRIES
from upcycle.zoo.published import PUBLISHED, SHIPPED

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"<!-- begin: ([\w-]+) -->\n(.*?)<!-- end: \1 -->", re.DOTALL)
MARK = re.compile(r"^<!-- (?:begin|end): ", re.MULTILINE)
CODE = re.compile(r"```.*?```", re.DOTALL)
DICTIONARY = re.compile(r"\{'[^'\n]*': ")  # as Python prints one
HEADLESS = re.compile(r"^\|(?: --- \|)+\n(?!\|)", re.MULTILINE)  # a table without a row
MISSING = "*Not measured yet.*\n"
BENCHMARKS = (
    *(f"whole_command_{part}" for part in WHOLE),
    "kd_step",
    "features_step",
    "kd_accuracy",
    "loading",
    "startup",
    "save_points",
    "torture",
    "data_free",
    "data_free_cifar10",
    "data_free_wrn",
    "data_free_step",
    "one_stage_gan",
    "mda_routes",
    "cka",
    "dery_search",
    "dery_whole",
    "heat_maps",
    "attribution",
    "diagnosis",
    "ssf",
    "dine_cache",
    "cmae_step",
    "continual",
    "graphs",
    "gfkd_step",
    "factor_step",
    "tinymim_step",
    "graph_paths",
    "graph_streams",
    "spiking",
    "long_tail_heads",
    "shortcut",
    "mixing",
    "swap",
    "zoo_emo",
    "zoo_blocks",
    "euler",
    "pnp_latency",
)  # those with a block of their own
PAGES = {  # claims of what is no method
    "attribution": "[`attribution`](look-inside.md)",
    "esam": "[`esam`](ingredients.md#sharpness)",
    "snapmix": "[`snapmix`](ingredients.md#mixing)",
    "longtail": "[`longtail`](rare-classes.md)",
    "longtailcifar10": "[`longtailcifar10`](rare-classes.md)",
    "coord": "[`coord`](operate.md)",
    "metaformer": "[`metaformer`](operate.md)",
    "emo": "[`emo`](your-model-your-data.md#the-zoo)",
    "shunted": "[`shunted`](your-model-your-data.md#the-zoo)",
    "pnp": "[`pnp`](operate.md)",
    "tisode": "[`tisode`](operate.md)",
    "ode": "[`ode`](operate.md)",
}


def documents(root: Path = ROOT) -> list[Path]:
    """The files that may hold blocks."""
    named = ["README.md", "CONTRIBUTING.md", "src/upcycle/distillation/README.md", "src/upcycle/assembly/README.md"]
    return [*(root / name for name in named), *sorted((root / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """``text`` with every block made anew.

    Raises:
        ValueError: a block without an end, a name that nobody fills, or one that shows nothing, or shows Python.
    """

    def block(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in BLOCKS:
            raise ValueError(f"nothing fills the block '{name}'; there are {', '.join(BLOCKS)}")
        return f"<!-- begin: {name} -->\n{shown(name, BLOCKS[name]())}<!-- end: {name} -->"

    new, n = BLOCK.subn(block, text)
    if len(MARK.findall(text)) != 2 * n:
        raise ValueError("a block is begun and not ended, or ended under another name")
    return new


def shown(name: str, text: str) -> str:
    """``text``, if a reader can use it.

    Raises:
        ValueError: it is empty, holds a table without a row, or a dictionary as Python prints it.
    """
    prose = CODE.sub("", text)
    faults = {
        "is empty": not text.strip(),
        "has a table without a row": HEADLESS.search(prose),
        "prints a dictionary": DICTIONARY.search(prose),
    }
    for fault, there in faults.items():
        if there:
            raise ValueError(f"the block '{name}' {fault}")
    return text


# -- results ----------------------------------------------------------------------------------------------------


def result(name: str) -> dict[str, Any] | None:
    """A committed result, or None when it has not been measured."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def benchmark(name: str) -> str:
    """A benchmark's figures, its settings and where they come from."""
    record = result(name)
    if record is None:
        return MISSING
    text = figures_table(record["figures"])
    if settings := record.get("settings"):
        text += "\nSettings: " + ", ".join(f"{words(k)} {number(v)}" for k, v in settings.items()) + ".\n"
    script, _, part = str(record.get("benchmark", name)).partition("whole_command_")
    command = f"python -m benchmarks.{script or f'whole_command {part}'}"
    return f"{text}\n{provenance(record, command)}"


def quickstart() -> str:
    """What ``make run`` printed when it was measured."""
    record = result("quickstart")
    if record is None:
        return MISSING
    figures, rows = record["figures"], []
    for row in figures["rows"]:
        accuracy = [100 * a for a in row["accuracy"]]
        spread = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
        rows.append((row["name"], f"{statistics.fmean(accuracy):.1f}{spread} %", si(row["parameters"]),
                     si(row["macs"]), duration(row["latency"]), bytes_(row["memory"])))  # fmt: skip
    headings = ("", "test accuracy", "parameters", "multiply-adds", "latency", "memory")
    sentence = f"{figures['sentence']} All of it took {duration(figures['seconds'])}."
    return f"{table(headings, rows)}\n{sentence}\n\n{provenance(record, 'python -m benchmarks.quickstart')}"


def faults() -> str:
    """The kinds of faults that are looked for, their cases, and whether each holds."""
    record = result("faults")
    if record is None:
        return MISSING
    rows = []
    for kind, cases in record["figures"].items():
        for i, (case, found) in enumerate(cases.items()):
            tests = "" if found["tests"] == 1 else f" ({found['tests']} tests)"
            rows.append(("" if i else f"**{kind}**", case, ("yes" if found["holds"] else "**no**") + tests))
    count = sum(map(len, record["figures"].values()))
    said = f"{len(record['figures'])} kinds, {count} cases."
    made = provenance(record, "python -m benchmarks.faults")
    return f"{table(('kind', 'case', 'holds'), rows)}\n{said}\n\n{made}"


def baselines() -> str:
    """The baselines of continual learning: a table a stream, with its protocol, quotations beside the figures."""
    record, claim = result("continual_baselines"), result("prove_derpp")
    if record is None or claim is None:
        return MISSING
    parts = [_split_mnist(claim)]
    for found in record["figures"].values():
        columns = list(dict.fromkeys(key for row in found["rows"].values() for key in row))
        quoted = {"published (%)": found["published"]} if found["published"] else {}
        rows = [
            (
                f"`{name}`",
                *(percent(row[key]) if key in row else "" for key in columns),
                *(figures.get(name, "") for figures in quoted.values()),
            )
            for name, row in found["rows"].items()
        ]
        protocol = f"Protocol: {found['protocol']}, {found['seeds']} seeds."
        text = f"**{found['title']}**\n\n{protocol}\n\n" + table(("method", *columns, *quoted), rows)
        source = f" Published: {found['source']}." if quoted else ""
        parts.append(f"{text}\nExpected: {found['band']}.{source}\n")
    return "\n".join(parts) + "\n" + provenance(record, "python -m benchmarks.continual_baselines")


def _split_mnist(claim: dict[str, Any]) -> str:
    """The first of the tables, from the claim that measures it."""
    protocol, seeds = claim["setting"].split(". ")[0], len(claim["measured"]["ER (%)"])
    columns = {"class (%)": " (%)", "forgetting, class (points)": ", forgetting (points)",
               "task (%)": ", told the task (%)"}  # fmt: skip
    rows = []
    for name in ("joint", "fine-tuning", "oEWC", "SI", "LwF", "ER", "DER++"):
        arms = [claim["measured"].get(f"{name}{arm}") for arm in columns.values()]
        rows.append((name, *(percent(arm) if arm else "" for arm in arms)))
    text = table(("method", *columns), rows)
    return (
        f"**Split MNIST**\n\nProtocol: {protocol}, {seeds} seeds.\n\n{text}\nPublished: {claim['published']}\n\n"
        + provenance(claim["seeds"][-1], f"upcycle prove derpp --seeds {seeds}")
    )


def architectures() -> str:
    """Which networks go into which verbs."""
    record = result("architectures")
    if record is None:
        return MISSING
    return f"{matrix(record['figures']['cells'])}\n{provenance(record, 'python -m benchmarks.architectures')}"


# -- claims -----------------------------------------------------------------------------------------------------


def claimed() -> list[str]:
    """The names of the claims: those of methods in their order, then those of what is no method. None twice."""
    found = all_claims()
    return [name for name in dict.fromkeys([*(method.card.name for method in all_methods()), *found]) if name in found]


def claim_record(name: str) -> dict[str, Any] | None:
    """The record of a claim, if it is of the setting that the claim has now."""
    record = result(f"prove_{name}")
    return record if record is not None and record["setting"] == find(name).setting else None


def verdicts() -> dict[str, Any]:
    """Give what the records say of each method, for the package: see :mod:`upcycle.claims.found`."""
    found = {}
    for claim in claimed():
        if (record := claim_record(claim)) is None:
            continue
        last = record["seeds"][-1]
        for name, verdict in record["verdicts"].items():
            if verdict["verdict"] != "not measured":
                kept = {key: verdict[key] for key in ("verdict", "says", "gain", "interval", "unit")}
                found[name] = {
                    **kept,
                    "seeds": len(verdict["differences"]),
                    "claim": claim,
                    "date": last["date"],
                    "commit": last["commit"],
                }
    return found


def claims() -> str:
    """One row a method: what decides, and what was found here."""
    rows = []
    for name in claimed():
        record, claim = claim_record(name), find(name)
        for method, headline in {name: claim.headline, **claim.covers}.items():
            # A claim of no one method has no row beside that of a method which it covers and by which it decides.
            if headline is not None and not (method == name and name in PAGES and headline in claim.covers.values()):
                decided = (record or {}).get("verdicts", {}).get(method)
                shown = PAGES.get(method, f"[`{method}`](methods/{method}.md)")
                rows.append((shown, headline.says, *pages.cells(decided)))
    counted = ", ".join(f"{word} {n}" for word, n in Counter(row[2] for row in rows).most_common())
    index = table(("method", "what decides", "verdict", "gain, 95 % interval", "seeds"), rows)
    return f"Of {len(rows)} methods: {counted}.\n\n{index}"


def files() -> dict[Path, str]:
    """Give what is generated whole, by file: the verdicts and the options that the package ships, and the plots."""
    options = json.dumps(described.table(), indent=1, ensure_ascii=False) + "\n"
    return {FOUND: json.dumps(verdicts(), indent=1, ensure_ascii=False) + "\n", TABLE: options, **plots()}


def plots() -> dict[Path, str]:
    """The plots of the methods' pages, by file."""
    made = {}
    for name in claimed():
        claim, record = find(name), claim_record(name) or {"measured": {}}
        for method, headline in {name: claim.headline, **claim.covers}.items():
            if headline is not None and (drawn := pages.plot(headline, record["measured"])):
                made[ROOT / pages.PLOTS / f"{method}.svg"] = drawn
    return made


def verdict_line(name: str) -> str:
    """Give what was measured of a method, in a line for a page whose example is too small to show it."""
    found = verdicts().get(name)
    told = f"{short(found)}, {found['says']}" if found else "not measured yet in its present setting"
    return f"The record of [`{name}`](methods/{name}.md) says: {told}.\n"


def tutorial() -> str:
    """Give what the tutorial's commands printed when they were measured."""
    record = result("tutorial")
    if record is None:
        return MISSING
    rows = [
        (
            line["name"],
            f"{100 * statistics.fmean(line['accuracy']):.1f} %" if line["accuracy"] else "",
            si(line["parameters"]),
            si(line["macs"]),
            duration(line["latency"]),
            duration(line["seconds"]) if "seconds" in line else "",
        )
        for line in record["figures"]["rows"]
    ]
    headings = ("", "test accuracy", "parameters", "multiply-adds", "latency", "the command took")
    return f"{table(headings, rows)}\n{provenance(record, 'python -m benchmarks.tutorial')}"


def claim_page(name: str, assets: str = "../assets") -> str:
    """The figures of the claim of a method."""
    claim = find(name)
    return pages.figures(claim, claim_record(claim.method), name, assets)


def method_page(method: type[Method]) -> str:
    """The page of a method, and below it the figures of its claim."""
    name = method.card.name
    return page(method) + ("\n" + claim_page(name) if name in measured_methods() else "")


@functools.cache
def measured_methods() -> frozenset[str]:
    """Methods that have a claim or are covered by one."""
    return frozenset(name for claim in all_claims().values() for name in (claim.method, *claim.covers))


# -- facts of the code ------------------------------------------------------------------------------------------


def ingredients() -> str:
    """Which method takes which ingredient, and why not."""
    rows = [
        (f"[`{m.card.name}`](methods/{m.card.name}.md)", ", ".join(w for w in INGREDIENTS if w in m.admits), why_not(m))
        for m in all_methods()
        if "recipe" in m.options()
    ]
    words = "\n".join(f"- *{what}*: {asks}" for what, asks in INGREDIENTS.items())
    return f"{table(('method', 'takes', 'and not'), rows)}\n{words}\n"


def method_table() -> str:
    """One row a method: its page, what one gets, and the verdict."""
    found = verdicts()
    rows = [
        (
            f"[`{m.card.name}`](methods/{m.card.name}.md)",
            f"`{m.card.verb}`",
            m.card.summary,
            m.card.needs.data,
            short(found[m.card.name]) if m.card.name in found else "",
        )
        for m in all_methods()
    ]
    return table(("method", "command", "you get", "needs data", "verdict here"), rows)


def commands() -> str:
    """The verbs of the command line."""
    return table(("command", "what it does"), [(f"`upcycle {verb}`", text) for verb, text in SUMMARY.items()])


def zoo() -> str:
    """The networks of our own, with their sizes."""
    rows = []
    for name, entry in ENTRIES.items():
        model = resolve(f"zoo:{name}", pretrained=False)
        cost, trained = count(model.module, model.input_shape), entry.trained
        there = trained is not None and (SHIPPED / f"{trained.file or name}.safetensors").is_file()
        ours = "in the package" if there else "made by a script"
        others = "fetched, or in `$UPCYCLE_DATA/weights`" if name in PUBLISHED else "`$UPCYCLE_DATA/weights`"
        origin = "no" if trained is None else ours if trained.origin is None else others
        rows.append((f"`zoo:{name}`", " x ".join(map(str, entry.shape)), si(cost.parameters), si(cost.macs), origin,
                     trained.licence if trained else ""))  # fmt: skip
    headings = ("reference", "input", "parameters", "multiply-adds", "trained weights", "their licence")
    return table(headings, rows)


def licences() -> str:
    """What each licence asks of those who share a model that was made from it, and which others it excludes."""
    rows = []
    for name, terms in TERMS.items():
        asks = [word for word, asked in (
            ("name the source", terms.attribution), ("share under the same or a compatible licence", terms.share_alike),
            ("no commercial use", terms.non_commercial), ("hand on its use restrictions", terms.use_restrictions),
            ("do not share what is made from it", terms.no_derivatives)) if asked]  # fmt: skip
        # A licence without children excludes every other; it is said in its own row and not in all the others.
        clash = [other for other, theirs in TERMS.items()
                 if other != name and theirs.child and not terms.child & theirs.child]  # fmt: skip
        rows.append((name, ", ".join(asks) or "nothing", ", ".join(clash) or "none" if terms.child else "every other"))
    return table(("licence", "asks", "no child together with a parent under"), rows)


def api_methods() -> str:
    """The entries of all methods on the page of Python, by the verb that runs them."""
    verbs = dict.fromkeys(m.card.verb for m in all_methods())
    parts = [
        f"### {verb}\n\n"
        + "\n".join(
            f"::: {m.__module__}.{m.__qualname__}\n    options:\n      heading_level: 4\n"
            for m in all_methods()
            if m.card.verb == verb
        )
        for verb in verbs
    ]
    return "\n".join(parts)


def all_losses() -> str:
    """The functions of ``upcycle.losses``, each with the method or module that it is of and its first line."""
    rows = []
    for name in losses.__all__:
        function = getattr(losses, name)
        home, first = function.__module__.removeprefix("upcycle."), str(inspect.getdoc(function)).split("\n")[0]
        rows.append([f"`{name}`", f"`{home}`", first])
    return table(["loss", "of", "what it is"], rows)


def example_method() -> str:
    """The worked example of CONTRIBUTING.md, as it stands in its file."""
    return f"```python\n{(ROOT / 'docs' / 'example_method.py').read_text()}```\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "commands": commands,
    "zoo": zoo,
    "licences": licences,
    "example-method": example_method,
    "losses": all_losses,
    "quickstart": quickstart,
    "faults": faults,
    "claims": claims,
    "situations": lambda: pages.situations(verdicts()),
    "situations-site": lambda: pages.situations(verdicts(), "methods"),
    **{f"claim-{name}": functools.partial(claim_page, name, "assets") for name in PAGES},
    "ingredients": ingredients,
    "claim-longtail": lambda: long_tail_figures.page(claim_record("longtail"), claim_record("longtailcifar10")),
    **{f"method-{m.card.name}": functools.partial(method_page, m) for m in all_methods()},
    **{f"verdict-{m.card.name}": functools.partial(verdict_line, m.card.name) for m in all_methods()},
    "tutorial": tutorial,
    "benchmarks": lambda: benchmark_table(result),
    "api-methods": api_methods,
    "baselines": baselines,
    "architectures": architectures,
    "ingredients-step": functools.partial(benchmark, "ingredients"),
    **{name.replace("_", "-"): functools.partial(benchmark, name) for name in BENCHMARKS},
}


def main(argv: list[str] | None = None) -> int:
    """Write the blocks, or say which files are out of date."""
    parser = argparse.ArgumentParser(description="Fill the marked blocks of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    arguments = parser.parse_args(argv)
    stale = []
    for file, made in files().items():  # the verdicts first: pages repeat them
        if not file.is_file() or file.read_text() != made:
            stale.append(str(file.relative_to(ROOT)))
            if not arguments.check:
                file.parent.mkdir(exist_ok=True)
                file.write_text(made)
    shipped.cache_clear()
    for file in documents():
        text = file.read_text()
        try:
            new = filled(text)
        except ValueError as error:
            print(f"{file.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if new != text:
            stale.append(str(file.relative_to(ROOT)))
            if not arguments.check:
                file.write_text(new)
    if stale:
        print(("out of date: " if arguments.check else "written: ") + ", ".join(stale))
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
