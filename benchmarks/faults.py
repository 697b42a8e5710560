"""Nothing wrong in silence: kinds of faults that people met, and the tests that show that none of them is left.

``python -m benchmarks.faults [WORDS ...]`` runs the tests of every case, or of those whose kind or own sentence has one
of the arguments, and records whether each holds. A new kind is an entry of ``KINDS``: a sentence, and for each case
the address of a test; an address without brackets stands for all parameters of the test.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from typing import Any

import pytest

from benchmarks.common import RESULTS, record

INPUTS, FORGED = "tests/verbs/test_inputs.py", "tests/verbs/test_forged.py"
COMMANDS, NAMING = "tests/verbs/test_commands.py", "tests/verbs/test_naming.py"
REMEDIES, PROBE = "tests/verbs/test_remedies.py", "tests/core/test_probe.py"
REPORT, DOCS, GAUNTLET = "tests/report/test_report.py", "tests/test_docs.py", "tests/test_promises.py"
P13 = f"{GAUNTLET}::test_p13_a_run_goes_on_only_with_what_it_was_begun_with"
CONFIGURATION = f"{INPUTS}::test_a_damaged_configuration_is_named"
FORGERY = f"{FORGED}::test_whatever_a_file_says_is_read_or_named"
REFUSED = f"{PROBE}::test_what_cannot_be_taken_is_refused_by_its_name"
TAKEN = f"{PROBE}::test_what_can_be_taken_trains_teaches_and_reloads"
THROUGH = f"{DOCS}::test_what_is_marked_on_the_page_runs[docs/your-model-your-data.md]"
DISK = f"{PROBE}::test_saved_number_formats_come_back"

KINDS: dict[str, dict[str, str]] = {
    "A run goes on only with what it was begun with": {
        "a folder of images grew by ten": f"{INPUTS}::test_a_folder_that_grew_by_ten_images",
        "an image was added under kept outputs of the teacher": f"{INPUTS}::test_one_image_added_under_kept_outputs",
        "the labels are others": f"{INPUTS}::test_other_labels",
        "another teacher behind the same name": f"{INPUTS}::test_another_teacher_behind_the_same_name",
        "a label map was edited": f"{INPUTS}::test_a_label_map_that_was_edited",
        "images of the source, an adapter or a memory changed; every input of every method": P13,
        "the code of a network or a method changed: a note": f"{INPUTS}::test_changed_code_is_a_note",
    },
    "What a run directory says of itself is what the run wrote": {
        "config.yaml was edited; a copy of it serves for another run": (
            f"{INPUTS}::test_a_configuration_that_was_edited"
        ),
        "config.yaml is empty": f"{CONFIGURATION}[empty]",
        "config.yaml is a list": f"{CONFIGURATION}[a list]",
        "config.yaml is cut off": f"{CONFIGURATION}[cut]",
        "config.yaml is binary": f"{CONFIGURATION}[binary]",
        "config.yaml is nested without end": f"{CONFIGURATION}[deep]",
        "config.yaml says threads: 100000": f"{CONFIGURATION}[threads]",
        "metrics.csv was edited, cut off or lost": f"{INPUTS}::test_a_log_that_was_edited_or_lost",
    },
    "A digest is no schema: what a file says is checked for shape and range, however deep": {
        "config.yaml": f"{FORGED}::test_whatever_a_configuration_says_is_read_or_named",
        "the manifest of a model": f"{FORGERY}[manifest]",
        "the architecture of a model": f"{FORGERY}[architecture]",
        "options that an architecture is built with": "tests/core/test_models.py::test_forged_models_are_refused",
        "options of a network made of others": (
            "tests/verbs/test_assemble.py::test_a_record_that_somebody_changed_is_refused"
        ),
        "the lineage of a model": f"{FORGERY}[lineage]",
        "the index of save points": f"{FORGERY}[index]",
        "the results of stages": "tests/core/test_patterns.py::test_a_forged_result_of_a_stage_is_named",
        "the memory of an extended network": f"{FORGERY}[memory]",
        "the result of a run": f"{FORGERY}[result]",
        "pictures for a report": f"{REPORT}::test_a_damaged_picture_is_named_and_costs_no_report",
    },
    "One command at a time writes a directory": {
        "a second command on a running one": f"{INPUTS}::test_a_second_command_in_a_directory_is_refused",
        "six commands that start together": f"{INPUTS}::test_of_six_simultaneous_starts_one_runs",
        "report, diagnose, explain, predict, export and prove into it": (
            f"{INPUTS}::test_no_verb_writes_where_another_command_writes"
        ),
    },
    "Only what a run itself wrote is deleted, and nothing is written over unasked": {
        "files of others in checkpoints/, and *.tmp and *.old below": (
            f"{INPUTS}::test_only_what_the_run_wrote_is_deleted"
        ),
        "checkpoints/ is a symbolic link": f"{INPUTS}::test_a_linked_folder_of_save_points",
        "an export over a file that is there; leftovers of a killed export": (
            f"{INPUTS}::test_an_export_overwrites_nothing_unasked"
        ),
        "predictions and figures over a file that is there": (
            f"{INPUTS}::test_a_file_is_written_over_only_when_that_is_asked_for"
        ),
    },
    "The recorded command makes the run again": {
        "every verb that makes a model, names with blanks quoted, nothing called None": (
            f"{COMMANDS}::test_a_recorded_command_makes_the_run_again"
        ),
        "diagnose and explain, a bare package.module:callable among them": (
            f"{COMMANDS}::test_a_recorded_look_makes_it_again"
        ),
        "diagnose of a run whose product is rebuilt from others": (
            f"{COMMANDS}::test_a_command_names_the_run_that_was_looked_into"
        ),
        "every option of every method": f"{COMMANDS}::test_the_options_of_a_method_are_read_back_from_its_command",
    },
    "One group of options names a network in every verb": {
        "the same options everywhere": f"{REMEDIES}::test_one_group_names_a_network_in_every_verb",
        "evaluate, diagnose, explain, export, predict, treat, adapt, disassemble, assemble, reassemble and lineage of "
        "a function or a module of one's own, on the command line and in Python": THROUGH,
        "a bare module takes its input shape from the data": (
            f"{NAMING}::test_a_module_takes_its_shape_and_names_from_the_data"
        ),
        "a size of height and width": f"{NAMING}::test_images_need_not_be_square",
        "a named set of another size than the network's": (
            f"{NAMING}::test_a_named_set_of_another_size_is_no_surprise"
        ),
        "upcycle.export(module)": f"{NAMING}::test_export_takes_a_module",
        "lineage reads lineage.json and builds no network": f"{NAMING}::test_a_lineage_is_read_without_its_network",
    },
    "A remedy that a message names exists": {
        "every option and keyword in every message": f"{REMEDIES}::test_every_remedy_that_a_message_names_exists",
        "an invented one would be found": f"{REMEDIES}::test_the_walk_finds_an_option_that_does_not_exist",
        "without data the size is asked for, and serves": f"{NAMING}::test_without_data_the_size_says_it",
    },
    "Label maps and single images serve wherever they are suggested": {
        "evaluate with a label map": f"{NAMING}::test_a_map_names_the_outputs_that_are_measured",
        "predict with a label map": f"{NAMING}::test_a_map_names_what_is_predicted",
        "a teacher with more outputs than the data have classes": (
            f"{NAMING}::test_a_teacher_with_more_outputs_than_the_data_have_classes"
        ),
        "treat with a label map": f"{NAMING}::test_the_images_of_a_treatment_are_labelled_by_a_map",
        "an image alone in predict and explain": f"{NAMING}::test_an_image_alone_is_predicted_and_explained",
    },
    "Every verb is a Python function that returns what the command prints": {
        "evaluate, predict, lineage and report": THROUGH,
        "the reference of Python lists every verb": (
            f"{DOCS}::test_the_python_page_has_every_verb_and_every_name_on_it_exists"
        ),
        "report is the function, whatever was imported before": (
            f"{NAMING}::test_a_report_is_the_function_whatever_was_imported_before"
        ),
    },
    "Networks are tried as runs use them, and what can be taken is taken": {
        "x.view(len(x), -1) on a feature map": f"{PROBE}::test_a_view_runs_in_contiguous_memory_everywhere",
        "a tuple in training mode only": f"{TAKEN}[tuple]",
        "a list in training mode only": f"{TAKEN}[list]",
        "a dict in training mode only": f"{TAKEN}[dict]",
        "a named tuple in training mode only": f"{TAKEN}[named tuple]",
        "GoogLeNet with its auxiliary heads": f"{PROBE}::test_published_networks_with_heads_for_training[googlenet]",
        "Inception with its auxiliary head": f"{PROBE}::test_published_networks_with_heads_for_training[inception_v3]",
        "the main answer is the one that is trained with": (
            f"{PROBE}::test_the_answer_that_is_trained_with_is_that_of_evaluation"
        ),
        "float16": f"{TAKEN}[float16]",
        "bfloat16": f"{TAKEN}[bfloat16]",
        "float64": f"{TAKEN}[float64]",
        "compiled": f"{TAKEN}[compiled]",
        "train() that returns nothing": f"{TAKEN}[silent]",
    },
    "What cannot be used is refused by name, before the run directory exists": {
        "a student without trainable parameters": f"{PROBE}::test_what_cannot_be_trained_serves_as_teacher_only",
        "TorchScript": f"{REFUSED}[torchscript]",
        "lazy": f"{REFUSED}[lazy]",
        "quantised": f"{REFUSED}[quantised]",
        "on the meta device": f"{REFUSED}[meta]",
        "a batch of two under BatchNorm": f"{PROBE}::test_two_maps_of_one_pixel_are_no_batch_for_batchnorm",
    },
    "Number formats survive saving and loading": {
        "float16": f"{DISK}[float16]",
        "bfloat16": f"{DISK}[bfloat16]",
        "float64": f"{DISK}[float64]",
        "several in one network": f"{DISK}[mixed]",
    },
}
"""For each kind, in a sentence, its cases and the test of each."""


class _Outcomes:
    """How each test ended, as a plugin of pytest."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.nodeid].add(report.outcome)

    def of(self, test: str) -> list[set[str]]:
        """Of a test, or of each of its parameters."""
        return [ends for name, ends in self.found.items() if name == test or name.startswith(f"{test}[")]


def main() -> int:
    """Run, print and record; 1 where a case does not hold."""
    parser = argparse.ArgumentParser(description="Run the tests of all kinds of faults, and record what holds.")
    parser.add_argument("words", nargs="*", help="of the cases to run, if not all; the record keeps the others")
    words = parser.parse_args().words
    chosen = {
        (kind, case): test
        for kind, cases in KINDS.items()
        for case, test in cases.items()
        if not words or any(word in f"{kind}: {case}" for word in words)
    }
    outcomes = _Outcomes()
    tests = sorted(set(chosen.values()))
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[outcomes])
    file = RESULTS / "faults.json"
    before = json.loads(file.read_text())["figures"] if file.is_file() else {}
    figures: dict[str, dict[str, Any]] = {}
    for kind, cases in KINDS.items():
        figures[kind] = {case: before.get(kind, {}).get(case, {"tests": 0, "holds": False}) for case in cases}
        for case in cases:
            if (kind, case) in chosen:
                ends = outcomes.of(chosen[kind, case])
                figures[kind][case] = {"tests": len(ends), "holds": bool(ends) and all(e == {"passed"} for e in ends)}
    failed = [f"{kind}: {case}" for kind, case in chosen if not figures[kind][case]["holds"]]
    print("\n".join([*failed, str(record("faults", figures))]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
