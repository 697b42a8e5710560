"""The kinds of faults that people met, each in a sentence, and for each of its cases the test that looks for it.

An address without brackets stands for all parameters of the test.
"""

from __future__ import annotations

INPUTS, FORGED = "tests/verbs/test_inputs.py", "tests/verbs/test_forged.py"
COMMANDS, NAMING = "tests/verbs/test_commands.py", "tests/verbs/test_naming.py"
REMEDIES, PROBE = "tests/verbs/test_remedies.py", "tests/core/test_probe.py"
REPORT, DOCS, GAUNTLET = "tests/report/test_report.py", "tests/test_docs.py", "tests/test_promises.py"
SHAPES, LABELS = "tests/verbs/test_shapes.py", "tests/verbs/test_labels.py"
LOOK, LAYOUTS, TABLES = "tests/verbs/test_look.py", "tests/data/test_layouts.py", "tests/data/test_tables.py"
PHOTOGRAPHS, NAMED = "tests/data/test_photographs.py", "tests/data/test_named_splits.py"
ENDS, WEIGHTS, LAYERS = "tests/core/test_ends.py", "tests/core/test_weights.py", "tests/core/test_layers.py"
HEADS, MAPS = "tests/core/test_heads.py", "tests/core/test_feature_maps.py"
CHANNELS, BLOCKS = "tests/surgery/test_channels.py", "tests/surgery/test_blocks.py"
NASWOT, LORA = "tests/assembly/reassembly/test_naswot.py", "tests/adaptation/test_lora_ia3.py"
DOCTOR, ATTRIBUTION = "tests/diagnosis/test_model_doctor.py", "tests/diagnosis/test_attribution.py"
P13 = f"{GAUNTLET}::test_p13_a_run_goes_on_only_with_what_it_was_begun_with"
CONFIGURATION = f"{INPUTS}::test_a_damaged_configuration_is_named"
FORGERY = f"{FORGED}::test_whatever_a_file_says_is_read_or_named"
REFUSED = f"{PROBE}::test_what_cannot_be_taken_is_refused_by_its_name"
TAKEN = f"{PROBE}::test_what_can_be_taken_trains_teaches_and_reloads"
THROUGH = f"{DOCS}::test_what_is_marked_on_the_page_runs_and_shows_success[docs/your-model-your-data.md]"
DISK = f"{PROBE}::test_saved_number_formats_come_back"
SPLITS = f"{LAYOUTS}::test_usual_names_of_splits_in_any_case"
ONE_CLASS = "tests/verbs/test_one_class_a_task.py::test_one_class_a_task"
SAME_KD = f"{ENDS}::test_kd_with_a_network_that_ends_so_is_kd_without_it"
OTHER_KIND = f"{WEIGHTS}::test_numbers_of_another_kind_are_refused"
ENVELOPES = f"{WEIGHTS}::test_envelopes_and_prefixes_are_taken_off_and_named"
BESIDE = f"{WEIGHTS}::test_plain_objects_beside_weights_do_no_harm"
NARROWER = f"{CHANNELS}::test_a_narrower_network_computes_what_the_source_does_without_the_removed_channels"
SUBCLASSES = f"{LORA}::test_harmless_subclasses_are_adapted_and_what_is_left_out_is_said"
GOES_ON = f"{LORA}::test_where_the_classes_are_the_source_s_it_goes_on_from_its_classifier"
FOLDED = "tests/assembly/test_dery.py::test_networks_that_fold_space_into_the_batch_are_reassembled"
HUGGING = f"{BLOCKS}::test_vision_transformers_of_hugging_face_are_chains"
DISTILLED = f"{HEADS}::test_distilled_networks_of_timm"
LAST = f"{MAPS}::test_the_last_map_that_all_logits_pass_through"
LOOKED = f"{LOOK}::test_networks_of_every_kind_are_looked_into_as_far_as_they_allow"
MEMORY = f"{LOOK}::test_memory_is_not_taken_for_a_shortcut"

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
        "the reference of Python lists every verb": (f"{DOCS}::test_the_python_page_has_every_public_name"),
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
    "A network is used on the pixels that it was trained on": {
        "16 x 48 in distill, adapt, treat, disassemble and extend": f"{SHAPES}::test_verbs_that_make_a_network",
        "distill with a Model object": f"{SHAPES}::test_verbs_that_make_a_network[as a Model-distilled]",
        "adapt with a Model object": f"{SHAPES}::test_verbs_that_make_a_network[as a Model-adapted]",
        "disassemble with a Model object": f"{SHAPES}::test_verbs_that_make_a_network[as a Model-taken_apart]",
        "16 x 48 in evaluate, predict, diagnose and explain": f"{SHAPES}::test_verbs_that_look",
        "images in memory of another size": f"{SHAPES}::test_images_in_memory_are_as_they_are",
        "what resizing does to photographs is an option: said, saved, and the same everywhere": (
            f"{SHAPES}::test_what_resizing_does_is_said_saved_and_the_same_everywhere"
        ),
        "images that were read otherwise: a note": f"{SHAPES}::test_images_that_were_read_otherwise_are_noted",
        "a student without a teacher": f"{SHAPES}::test_a_student_that_says_what_it_takes_is_trained_on_that",
        "16-bit images with fewer used bits": f"{TABLES}::test_fewer_used_bits_are_scaled_by_the_largest_value",
        "what was white is saved with the network": f"{TABLES}::test_a_network_keeps_what_is_white",
        "300 photographs of many sizes, grey, 16-bit and 4-channel, in six layouts": (
            f"{PHOTOGRAPHS}::test_one_figure_for_photographs_in_any_layout"
        ),
    },
    "A test split stands when data grow": {
        "one image more, a class more, other file names": f"{LAYOUTS}::test_a_drawn_split_stands_when_data_grow",
        "ten photographs more": f"{PHOTOGRAPHS}::test_ten_more_images_move_none",
        "copies of one image": f"{LAYOUTS}::test_copies_of_an_image_share_a_split",
        "tables, in one file or in shards": (f"{TABLES}::test_drawn_splits_of_tables_stand_and_do_not_hang_on_shards"),
        "a set too large to be read first: by path": f"{LAYOUTS}::test_large_files_are_drawn_by_their_paths",
        "images read at another size": f"{LAYOUTS}::test_the_split_does_not_depend_on_the_size",
        "too few images": f"{LAYOUTS}::test_few_images_are_shared_or_refused",
        "named sets keep the splits that records rest on": f"{NAMED}::test_a_named_set_keeps_its_splits",
    },
    "Folders are understood and it is said, or they are refused": {
        "Training and Testing": f"{SPLITS}[Training--Testing]",
        "Train, Valid and Test": f"{SPLITS}[Train-Valid-Test]",
        "dev": f"{SPLITS}[train-dev-test]",
        "eval; capital letters": f"{SPLITS}[TRAIN-eval-TEST]",
        "seg_train and seg_test": f"{SPLITS}[seg_train--seg_test]",
        "seg_train/seg_train": f"{LAYOUTS}::test_splits_may_lie_in_folders_of_their_own_names",
        "val and test alone": f"{LAYOUTS}::test_validation_and_test_alone",
        "a folder that cannot be placed": f"{LAYOUTS}::test_folders_that_cannot_be_placed",
        "a class that is called train": f"{LAYOUTS}::test_a_railway_has_trains",
        "symbolic links are followed, loops are named": f"{LAYOUTS}::test_links_are_followed_and_loops_are_named",
        "a path in a table never leaves its folder": f"{TABLES}::test_a_path_in_a_table_never_leaves_its_folder",
        ".ipynb_checkpoints, @eaDir, ._x.png and dangling links are left out and counted": (
            f"{LAYOUTS}::test_what_nobody_means_is_left_out_and_counted"
        ),
        "training, predict and explain share one reader": (
            f"{LAYOUTS}::test_training_predict_and_explain_share_one_reader"
        ),
        "names of files and classes that are no UTF-8": f"{LAYOUTS}::test_names_that_are_no_utf8",
        "a class without test images": f"{LAYOUTS}::test_a_class_may_lack_test_images",
    },
    "Labels that exist are used, and a figure is called what it is": {
        "unlabelled training images beside labelled test images": (
            f"{LABELS}::test_unlabelled_training_images_beside_labelled_test_images"
        ),
        "no labels at all: agreement with the teacher": f"{LABELS}::test_no_labels_at_all",
        "labelled validation images beside unlabelled test images": (
            f"{LABELS}::test_labelled_validation_beside_unlabelled_test_images"
        ),
        "tuned, with nothing to measure on": f"{LABELS}::test_a_network_that_is_tuned_without_labelled_test_images",
        "'8' is called '1' once, twice, five times": f"{REPORT}::test_a_number_of_errors_is_a_sentence",
        "'dog' is called 'cat' 67 times in 1,000": f"{REPORT}::test_the_page_answers_what_it_is_for",
        "parts that are weak alone and strong when assembled": (
            "tests/verbs/test_assemble.py::test_a_part_that_is_weak_alone_is_measured_within_the_whole_too"
        ),
    },
    "Tables and samples are read as others give them": {
        "labels of unsigned types, string labels, lists of one label": f"{TABLES}::test_labels_of_any_type",
        "string labels of two splits": f"{TABLES}::test_names_are_those_of_the_training_images_in_order",
        "text that is no UTF-8": f"{TABLES}::test_text_that_is_no_utf8",
        "columns fine_label, img and other usual ones": f"{TABLES}::test_usual_names_of_columns",
        "columns that are named": f"{TABLES}::test_columns_can_be_named",
        "the hub's file names": f"{TABLES}::test_file_names_of_the_hub_and_others",
        "samples that are dicts, as datasets gives them": f"{TABLES}::test_samples_that_are_dicts",
        "labels of shape (1,)": f"{TABLES}::test_labels_of_one_number",
    },
    "One class a task is a stream": {
        "folders and splits of any layout": "tests/data/test_streams.py::test_one_class_a_task",
        "folders: with replay": f"{ONE_CLASS}[folders-er]",
        "folders: with distillation": f"{ONE_CLASS}[folders-lwf]",
        "folders: with weights held": f"{ONE_CLASS}[folders-oewc]",
        "splits: with replay": f"{ONE_CLASS}[splits-er]",
        "splits: with distillation": f"{ONE_CLASS}[splits-lwf]",
        "splits: with weights held": f"{ONE_CLASS}[splits-oewc]",
    },
    "Answers that are no logits are found, and taken for what they are": {
        "a teacher that ends in softmax": f"{SAME_KD}[teacher-softmax]",
        "a teacher that ends in log-softmax": f"{SAME_KD}[teacher-log-softmax]",
        "a teacher that ends in a sigmoid": f"{SAME_KD}[teacher-sigmoid]",
        "a student that ends in softmax": f"{SAME_KD}[student-softmax]",
        "softmax in evaluation only": (f"{ENDS}::test_the_logits_are_those_in_front_of_the_end[softmax in evaluation]"),
        "numbers that look like probabilities by chance": (
            f"{ENDS}::test_numbers_that_look_like_probabilities_by_chance_stay_logits"
        ),
        "numbers between 0 and 1 of another origin": (
            f"{ENDS}::test_numbers_between_0_and_1_of_another_origin_are_named"
        ),
        "a sigmoid in bfloat16": f"{ENDS}::test_mixed_precision_rounds_no_sigmoid_to_one",
        "evaluate and predict say so": f"{ENDS}::test_the_verbs_say_it_and_probabilities_are_right",
        "frozen and exported": f"{ENDS}::test_frozen_and_exported_it_answers_the_same",
        "saved and loaded": f"{ENDS}::test_weights_are_saved_without_it_and_it_comes_back",
        "some of the classes": f"{ENDS}::test_some_of_the_classes_share_what_is_theirs",
        "a local black box": f"{ENDS}::test_a_black_box_that_ends_so_gives_its_probabilities",
        "an ONNX file that ends in a sigmoid": (
            "tests/predictors/test_predictors.py::test_a_file_that_ends_in_a_sigmoid_is_not_guessed"
        ),
    },
    "Weights are the file's, and which were taken is said": {
        "integer weights": f"{OTHER_KIND}[pt-int8]",
        "boolean weights": f"{OTHER_KIND}[pt-bool]",
        "complex weights": f"{OTHER_KIND}[pt-complex64]",
        "the same in safetensors; int64": OTHER_KIND,
        "counters stay whole numbers": f"{WEIGHTS}::test_counters_stay_whole_numbers",
        "raw and EMA weights in one file": (
            f"{WEIGHTS}::test_raw_weights_are_taken_beside_averaged_ones_and_it_is_said"
        ),
        "averaged weights, chosen by name": f"{WEIGHTS}::test_averaged_weights_alone_are_taken_by_their_name",
        "a student and its teacher in one file": f"{WEIGHTS}::test_student_and_teacher_are_not_guessed",
        "a part that looks like the whole": f"{WEIGHTS}::test_a_part_that_looks_like_the_whole_is_not_taken_for_it",
        "chosen on the command line": f"{WEIGHTS}::test_the_verbs_take_the_key_and_say_what_was_taken",
    },
    "A checkpoint of a training script is read with all that lies around its weights": {
        "n_averaged, total_ops and criterion.*": f"{WEIGHTS}::test_what_is_no_weight_is_left_out_and_named",
        "in model_state": f"{ENVELOPES}[model_state]",
        "under module.student.": f"{ENVELOPES}[module.student]",
        "under backbone.": f"{ENVELOPES}[state_dict.backbone]",
        "argparse.Namespace": f"{BESIDE}[True-namespace]",
        "numpy scalars": f"{BESIDE}[True-numpy scalars]",
        "numpy arrays": f"{BESIDE}[True-numpy array]",
        "pathlib": f"{BESIDE}[True-paths]",
        "other plain objects, in torch's old format too": BESIDE,
        "weights in arrays of numpy": f"{WEIGHTS}::test_weights_in_arrays_of_numpy",
        "a class of the script: refused by its name": f"{WEIGHTS}::test_a_class_of_the_script_is_refused_by_its_name",
        "nothing of a stranger's runs": f"{WEIGHTS}::test_nothing_is_executed_through_what_is_let_in",
        "no array is made of a stranger's addresses": (f"{WEIGHTS}::test_no_array_is_made_of_a_strangers_addresses"),
    },
    "A harmless subclass is the layer that it comes from": {
        "timm's layers and transformers'": f"{LAYERS}::test_layers_of_timm_and_transformers",
        "timm's MobileNetV3 in disassemble": f"{NARROWER}[timm's own linear layer]",
        "GhostNet": f"{NARROWER}[cheap features]",
        "LCNet": f"{NARROWER}[hard gates]",
        "gates of squeeze-and-excitation": f"{NARROWER}[mobilenet_v3_small]",
        "TensorFlow's padding": f"{NARROWER}[TensorFlow's padding]",
        "ResNet of Hugging Face": f"{NARROWER}[Hugging Face's ResNet]",
        "LoRA adapts them and says what it leaves out": f"{SUBCLASSES}[LoRA]",
        "IA3 adapts them and says what it leaves out": f"{SUBCLASSES}[IA3]",
        "layers that would not merge": f"{LORA}::test_layers_that_would_not_merge_are_left_out",
        "BatchNorm folds into them and into no others": (
            f"{LAYERS}::test_batchnorms_fold_into_harmless_subclasses_and_into_no_others"
        ),
        "the Fisher information of their weights": (
            "tests/continual/weights/test_fisher.py::test_the_same_as_a_loop_over_samples[subclasses-False]"
        ),
        "contributions under a padding of their own": (
            "tests/assembly/disassembly/test_contribution.py::test_other_paddings[TensorFlow]"
        ),
    },
    "A network is cut where it can be, and a refusal names what stops it": {
        "DeRy: Swin": f"{FOLDED}[Swin]",
        "DeRy: MobileViT": f"{FOLDED}[MobileViT]",
        "windows in the batch are parts of their image": (
            f"{NASWOT}::test_windows_in_the_batch_are_parts_of_their_image"
        ),
        "units that know no images: before the search": f"{NASWOT}::test_units_that_know_no_images_are_named",
        "torch's attention": f"{NASWOT}::test_attention_of_torch_counts_by_images",
        "ViT of Hugging Face": f"{HUGGING}[ViT]",
        "DeiT of Hugging Face": f"{HUGGING}[DeiT]",
        "BEiT of Hugging Face": f"{HUGGING}[Beit]",
        "the reason why a network is no chain": f"{BLOCKS}::test_no_chain",
        "an operation that is not understood": f"{CHANNELS}::test_what_is_not_understood_is_named",
        "a forward that counts its channels": (
            f"{CHANNELS}::test_a_forward_that_counts_its_channels_is_refused_and_says_where"
        ),
        "slices of a fixed width, splits and thirds": (
            f"{CHANNELS}::test_channels_that_a_forward_counts_by_itself_stay_and_even_parts_stay_even"
        ),
    },
    "A trained classifier is found whole, and kept where the classes are its own": {
        "two averaged heads: LeViT": f"{DISTILLED}[levit_128s]",
        "two averaged heads: distilled DeiT": f"{DISTILLED}[deit_tiny_distilled_patch16_224]",
        "a probe trains both": f"{HEADS}::test_a_probe_trains_both_heads",
        "a sum that is no mean; a cosine": f"{HEADS}::test_a_sum_that_is_no_mean_and_a_cosine_are_refused",
        "LoRA keeps it": f"{GOES_ON}[LoRA-1]",
        "IA3 keeps it": f"{GOES_ON}[IA3-1]",
        "SSF and a linear probe keep it; classes in another order": GOES_ON,
    },
    "A map is of a layer that all logits pass through": {
        "one branch of several": f"{LAST}[branches that are joined]",
        "a shortcut's convolution runs last": f"{LAST}[a shortcut's convolution runs last]",
        "channels of a sum, a concatenation and a perceptron": (
            f"{DOCTOR}::test_channels_are_those_of_the_last_convolution_if_it_is_no_branch_of_several"
        ),
        "weight norm": f"{LAST}[weight norm]",
        "spectral norm": f"{LAST}[spectral norm]",
        "Grad-CAM through parametrised layers": f"{ATTRIBUTION}::test_gradcam_goes_through_parametrised_layers",
        "Grad-CAM of a ViT": f"{ATTRIBUTION}::test_gradcam_of_tokens_is_that_of_their_maps",
        "a class token in front": f"{LAST}[a class token]",
        "a class token behind": f"{LAST}[a class token behind]",
        "several tokens beside the patches": f"{LAST}[a class token and others]",
        "no class token": f"{LAST}[the mean of the tokens]",
        "each token at its patch, in images that are not square": (f"{MAPS}::test_tokens_stand_where_their_patch_is"),
    },
    "Every network that distill takes is looked into as far as it allows": {
        "a transformer": f"{LOOKED}[a transformer]",
        "parametrised layers": f"{LOOKED}[weight norm]",
        "a perceptron": f"{LOOKED}[a perceptron]",
        "a linear classifier": f"{LOOKED}[a linear classifier]",
        "a network without a gradient": f"{LOOKED}[no gradient]",
    },
    "A diagnosis warns of what it can tell, and says what it cannot": {
        "validation images that the teacher was trained on": f"{MEMORY}[training and validation]",
        "validation images that it was not trained on": f"{MEMORY}[training]",
        "familiar images are told from others": (f"{DOCTOR}::test_validation_images_that_were_trained_on_are_familiar"),
        "a true shortcut": f"{LOOK}::test_a_shortcut_is_suspected",
        "a shortcut of one class among familiar images": (
            f"{LOOK}::test_a_shortcut_of_one_class_is_suspected_even_where_validation_images_are_familiar"
        ),
        "a class that is never recognised": f"{LOOK}::test_a_class_that_is_never_recognised_is_said",
        "the same in Python": f"{DOCTOR}::test_a_class_that_is_never_recognised_is_reported",
        "a network that recognises nothing": (
            f"{DOCTOR}::test_a_network_that_recognises_nothing_has_no_channels_to_show"
        ),
        "what it says and shows": f"{LOOK}::test_a_diagnosis_says_and_shows_what_it_saw",
    },
}
"""For each kind, in a sentence, its cases and the test of each."""
