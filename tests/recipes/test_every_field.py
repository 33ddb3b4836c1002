"""Every field of a recipe has a test that sees it at work: a table, and that the table is whole.

A new field, of the defaults, a view, a method or a pipeline, needs a line here: the test that fails
if the field is accepted and ignored. Where each view has the field, `*` stands for the view.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipes import freeze

from simclr_jax import declaration, recipes, records
from simclr_jax.fields import CHOICES, RULES
from simclr_jax.pipeline import recipe as pipeline

TESTS = Path(__file__).parents[1]

VIEW = "recipes/test_view_fields.py"
TRAINING = "recipes/test_training_fields.py"
NETWORK = "recipes/test_network_fields.py"
DATA = "recipes/test_data_fields.py"
RUN = "recipes/test_run_fields.py"
LABEL = "recipes/test_label_fields.py"
SEEDS = "recipes/test_seeds.py"
FINETUNE = "stages/test_finetune.py"
DISTILL = "stages/test_distill.py"
PATCHES = "methods/test_patch_tasks.py"
PIPELINE = "pipeline/test_pipelines.py"

# The file, the test in it, and the fields that it sees.
SEEN: dict[tuple[str, str], tuple[str, ...]] = {
    (SEEDS, "test_the_seed_decides_each_draw"): ("seed",),
    (SEEDS, "test_labels_are_drawn_by_a_seed_of_their_own"): ("labels.use", "labels.seed"),
    ("test_recipes.py", "test_every_choice_is_valid_and_builds"): ("stage",),
    (NETWORK, "test_the_method_says_which_parts_there_are"): ("method",),
    # Images
    (DATA, "test_source_and_path_say_which_images"): ("data.source", "data.path"),
    (
        "data/test_sources.py",
        "test_raw_pixels_say_little_about_placed_digits_and_much_about_plain_ones",
    ): ("data.name",),
    (DATA, "test_a_split_is_trained_on_and_another_evaluated_on"): (
        "data.split",
        "data.eval_split",
    ),
    (DATA, "test_labels_may_be_left_alone"): ("data.labels",),
    (DATA, "test_views_have_the_size_of_the_recipe"): ("data.image_size",),
    (DATA, "test_a_share_is_held_out_where_there_is_no_split_for_it"): ("data.holdout_fraction",),
    (DATA, "test_exactly_the_largest_share_may_be_unreadable"): ("data.max_bad_fraction",),
    ("data/test_large_images.py", "test_the_recipe_says_how_large_an_image_may_be"): (
        "data.max_megapixels",
    ),
    ("data/test_depth.py", "test_white_level_is_that_of_the_recipe_on_every_placement"): (
        "data.white_level",
    ),
    (DATA, "test_images_are_decoded_by_as_many_threads"): ("data.threads",),
    ("data/test_reader.py", "test_evaluations_decode_once_what_fits_and_see_the_same"): (
        "data.eval_gigabytes",
    ),
    (DATA, "test_resident_images_lie_on_the_devices"): ("data.resident",),
    (DATA, "test_a_stream_has_the_blocks_windows_and_lanes_of_the_recipe"): (
        "data.order",
        "data.stream_block",
        "data.stream_window",
        "data.stream_lanes",
    ),
    ("data/test_layout.py", "test_one_name_beside_others_is_for_a_user_to_decide"): (
        "data.layout",
    ),
    ("data/test_changed_files.py", "test_one_image_replaced_is_said_or_refused"): (
        "data.if_changed",
    ),
    ("data/test_tfrecord.py", "test_the_index_may_be_in_the_home_directory"): ("data.index",),
    # Views
    ("data/test_placements.py", "test_host_makes_the_views_of_the_device"): ("augment.placement",),
    ("data/test_canvas.py", "test_a_run_says_how_many_did_not_fit"): ("augment.canvas",),
    ("data/test_canvas.py", "test_the_recipe_says_whether_jpegs_are_scaled"): (
        "augment.jpeg_scaling",
    ),
    ("augment/test_precision.py", "test_a_recipe_says_how_exact_its_views_are"): (
        "augment.precision",
        "augment.dtype",
    ),
    (VIEW, "test_the_grid_is_the_law_of_the_resize"): ("augment.grid",),
    ("augment/test_crop_laws.py", "test_the_law_of_crops_is_that_of_a_loop"): ("augment.crop_law",),
    ("augment/test_crop_laws.py", "test_what_the_resize_overshot_is_clipped_if_asked"): (
        "augment.clip_resized",
    ),
    (VIEW, "test_brightness_may_be_added"): ("augment.brightness_mode",),
    (VIEW, "test_a_width_may_be_one_of_the_batch"): ("augment.sigma_per",),
    (VIEW, "test_crops_fill_their_limits"): ("augment.views.*.crop",),
    (VIEW, "test_a_limit_of_the_crop_holds_where_it_is_set"): (
        "augment.views.*.area_min",
        "augment.views.*.area_max",
        "augment.views.*.min_object_covered",
        "augment.views.*.aspect_min",
        "augment.views.*.aspect_max",
    ),
    (VIEW, "test_a_probability_of_one_half_does_it_to_half"): (
        "augment.views.*.flip",
        "augment.views.*.grayscale",
        "augment.views.*.solarize",
    ),
    (VIEW, "test_jitter_is_the_probability_of_all_four"): ("augment.views.*.jitter",),
    (VIEW, "test_a_blur_is_a_gaussian_of_a_tenth_of_the_view_in_half"): ("augment.views.*.blur",),
    (VIEW, "test_strengths_say_how_far_colours_may_go"): (
        "augment.views.*.strength",
        "augment.views.*.brightness",
        "augment.views.*.contrast",
        "augment.views.*.saturation",
        "augment.views.*.hue",
    ),
    (VIEW, "test_its_widths_fill_their_range"): (
        "augment.views.*.blur_sigma_min",
        "augment.views.*.blur_sigma_max",
    ),
    (VIEW, "test_values_from_the_threshold_on_are_inverted_in_all"): (
        "augment.views.*.solarize_threshold",
    ),
    (VIEW, "test_gray_first_leaves_no_hue_to_turn"): ("augment.views.*.grayscale_first",),
    (VIEW, "test_copies_are_further_views_of_the_same_policy"): ("augment.views.*.copies",),
    (VIEW, "test_a_view_may_have_a_group_and_a_size_of_its_own"): (
        "augment.views.*.size",
        "augment.views.*.group",
    ),
    # The network
    (NETWORK, "test_depth_is_the_number_of_blocks"): ("model.depth",),
    (NETWORK, "test_width_multiplies_the_channels"): ("model.width",),
    (NETWORK, "test_the_stem_is_small_or_large"): ("model.stem",),
    (NETWORK, "test_ratios_are_the_widths_of_channel_attention"): (
        "model.sk_ratio",
        "model.se_ratio",
    ),
    (NETWORK, "test_the_variant_has_the_shortcuts_and_the_pool_of_its_name"): ("model.variant",),
    (NETWORK, "test_the_encoder_is_shown_what_the_recipe_says"): ("model.input",),
    (NETWORK, "test_momentum_is_the_share_that_averages_keep"): ("bn.momentum",),
    (NETWORK, "test_epsilon_is_added_to_the_variance"): ("bn.epsilon",),
    (NETWORK, "test_groups_are_normalised_each_by_itself"): ("bn.groups",),
    (NETWORK, "test_moving_variances_may_be_unbiased_where_they_are_not_of_all"): (
        "bn.unbiased_moving",
    ),
    (NETWORK, "test_the_head_has_the_layers_and_widths_that_are_asked_for"): (
        "head.kind",
        "head.layers",
        "head.hidden",
        "head.dim",
    ),
    (NETWORK, "test_biases_of_an_mlp"): ("head.bias",),
    (NETWORK, "test_normalisations_of_an_mlp"): ("head.norm",),
    (NETWORK, "test_the_predictor_is_as_wide_as_asked"): ("byol.hidden", "simsiam.hidden"),
    ("methods/test_simsiam.py", "test_the_rate_of_the_predictor_stays_where_the_others_fall"): (
        "simsiam.constant_rate",
    ),
    ("methods/test_byol.py", "test_eight_devices_do_what_one_does"): ("byol.momentum",),
    ("methods/test_moco.py", "test_eight_devices_do_what_one_does"): (
        "moco.queue",
        "moco.momentum",
    ),
    ("methods/test_fnc.py", "test_eight_devices_do_what_one_does"): (
        "fnc.memory",
        "fnc.momentum",
    ),
    (
        "methods/test_fnc.py",
        "test_without_support_views_memory_and_false_negatives_it_is_simclr",
    ): ("fnc.threshold",),
    ("methods/test_fnc.py", "test_embeddings_that_are_all_equal_have_the_loss_declared"): (
        "fnc.cancel",
        "fnc.top_k",
    ),
    ("methods/test_pcl.py", "test_each_field_of_its_own_is_read"): (
        "pcl.queue",
        "pcl.momentum",
        "pcl.clusters",
        "pcl.negatives",
        "pcl.warmup_epochs",
        "pcl.iterations",
        "pcl.starts",
    ),
    ("methods/test_instdisc.py", "test_eight_devices_do_what_one_does"): ("instdisc.loss",),
    ("methods/test_instdisc.py", "test_a_step_is_that_written_out"): (
        "instdisc.negatives",
        "instdisc.momentum",
    ),
    ("methods/test_instdisc.py", "test_a_partition_that_is_given_is_the_one"): (
        "instdisc.partition",
    ),
    ("methods/test_contrastive.py", "test_the_loss_is_that_of_its_definition"): (
        "contrastive.loss",
        "contrastive.sigma",
        "contrastive.tau_plus",
        "contrastive.beta",
        "contrastive.margin",
        "contrastive.negatives",
    ),
    ("methods/test_supcon.py", "test_the_loss_is_that_of_its_definition"): (
        "supcon.base_temperature",
        "supcon.anchors",
    ),
    ("methods/test_exemplar.py", "test_triplets_one_by_one"): (
        "exemplar.form",
        "exemplar.margin",
        "exemplar.dim",
        "exemplar.normalize",
    ),
    ("methods/test_counting.py", "test_the_loss_is_that_of_tiles_one_by_one"): (
        "counting.form",
        "counting.margin",
        "counting.downsampling",
    ),
    (PATCHES, "test_the_loss_is_that_of_its_definition"): (
        "relative_patch.pairs",
        "relative_patch.grid",
        "relative_patch.patch",
        "relative_patch.gap",
        "relative_patch.jitter",
        "jigsaw.grid",
        "jigsaw.patch",
        "jigsaw.jitter",
        "jigsaw.permutations",
    ),
    (PATCHES, "test_permutations_of_a_step_are_drawn_anew_and_shared_if_asked"): (
        "jigsaw.drawn",
        "jigsaw.shared",
    ),
    (PATCHES, "test_another_first_permutation_makes_another_set"): (
        "jigsaw.first",
        "jigsaw.order",
    ),
    (PATCHES, "test_patches_lie_as_the_recipe_says"): ("jigsaw.gap",),
    (PATCHES, "test_of_one_colour_others_are_noise"): (
        "relative_patch.colours",
        "jigsaw.colours",
    ),
    (PATCHES, "test_a_share_of_what_sees_the_patches_together_is_dropped"): (
        "relative_patch.dropout",
        "jigsaw.dropout",
    ),
    (PATCHES, "test_the_head_is_as_wide_as_asked"): (
        "relative_patch.embed",
        "relative_patch.hidden",
        "jigsaw.embed",
        "jigsaw.hidden",
    ),
    ("methods/test_dense.py", "test_an_autoencoder_is_shown_the_image_and_asked_for_it"): (
        "autoencoder.width",
        "autoencoder.code",
    ),
    (
        "methods/test_dense.py",
        "test_noise_is_masking_after_gauss_and_the_clean_image_is_asked_for",
    ): (
        "denoising_autoencoder.width",
        "denoising_autoencoder.code",
        "denoising_autoencoder.mask",
        "denoising_autoencoder.sigma",
    ),
    ("methods/test_dense.py", "test_a_hole_in_the_middle_whose_border_stays_and_weighs_more"): (
        "context_encoder.width",
        "context_encoder.hole",
        "context_encoder.overlap",
        "context_encoder.border_weight",
        "context_encoder.fill",
    ),
    ("methods/test_dense.py", "test_holes_anywhere_are_drawn_by_image_and_shown"): (
        "context_encoder.place",
    ),
    ("methods/test_dense.py", "test_bins_are_weighed_by_how_frequent_colours_have_been"): (
        "colourisation.width",
        "colourisation.shrink",
        "colourisation.neighbours",
        "colourisation.sigma",
        "colourisation.alpha",
        "colourisation.uniform",
    ),
    ("methods/test_dense.py", "test_regression_is_the_squared_error_of_a_and_b"): (
        "colourisation.form",
    ),
    # Training
    (TRAINING, "test_the_loss_is_that_of_the_recipe"): (
        "loss.temperature",
        "loss.scale",
        "loss.normalize",
    ),
    (
        "methods/test_memory.py",
        "test_memory_holds_what_the_average_network_made_of_second_views_oldest_first",
    ): ("memory.size",),
    ("methods/test_memory.py", "test_average_moves_by_its_law_towards_the_new_parameters"): (
        "memory.momentum",
    ),
    (TRAINING, "test_the_optimiser_is_that_of_the_recipe"): (
        "optim.name",
        "optim.momentum",
        "optim.nesterov",
        "optim.rate_in_momentum",
        "optim.rate_after_momentum",
        "optim.weight_decay",
        "optim.decayed",
        "optim.trust_coefficient",
        "optim.adapt_classifier",
    ),
    (TRAINING, "test_the_rate_of_every_step"): (
        "optim.base_lr",
        "optim.lr_scaling",
        "optim.warmup_epochs",
        "train.batch_size",
        "train.epochs",
        "train.steps",
    ),
    ("recipes/test_rate_drops.py", "test_the_rate_drops_at_epochs"): (
        "optim.drops",
        "optim.drop_factor",
    ),
    (TRAINING, "test_a_rate_may_fall_by_the_epoch"): ("optim.rate_per",),
    (NETWORK, "test_the_network_computes_in_the_dtype_of_the_recipe"): ("train.dtype",),
    (NETWORK, "test_blocks_are_computed_again_if_asked"): ("train.remat",),
    (
        "train/test_reduce_dtype.py",
        "test_half_the_bytes_of_gradients_are_sent_and_all_else_as_it_was",
    ): ("train.reduce_dtype",),
    (
        "train/test_repeating.py",
        "test_the_step_is_compiled_with_it_if_the_recipe_says_deterministic",
    ): ("train.deterministic",),
    (NETWORK, "test_steps_are_taken_in_chunks"): ("train.steps_per_call",),
    ("train/test_gradients.py", "test_parts_take_less_memory"): ("train.accumulate",),
    # Labels
    (FINETUNE, "test_the_tap_is_what_the_classifier_reads"): ("finetune.tap",),
    (FINETUNE, "test_a_step_changes_what_learns_and_nothing_else"): (
        "finetune.train_from_block",
        "finetune.train_head",
        "finetune.encoder_bn",
    ),
    (FINETUNE, "test_a_zero_classifier_is_zero"): ("finetune.zero_classifier",),
    (FINETUNE, "test_a_run_starts_from_all_the_parts_it_names"): ("init.run", "init.parts"),
    (DISTILL, "test_the_teacher_is_that_of_the_python_api"): ("distill.teacher",),
    (DISTILL, "test_on_labelled_images_alone_no_other_occurs"): ("distill.images",),
    (LABEL, "test_the_loss_of_distillation_is_that_of_the_recipe"): (
        "distill.temperature",
        "distill.alpha",
        "distill.times_squared_temperature",
    ),
    (LABEL, "test_the_teacher_computes_in_a_dtype_of_its_own"): ("distill.teacher_dtype",),
    # What is measured, said and saved
    (RUN, "test_it_evaluates_as_often_and_as_much_as_asked"): (
        "eval.every_epochs",
        "eval.probe",
        "eval.knn",
    ),
    (RUN, "test_the_probe_reads_its_tap"): ("eval.probe_tap",),
    (RUN, "test_neighbours_are_as_many_and_vote_as_asked"): (
        "eval.knn_k",
        "eval.knn_temperature",
    ),
    (RUN, "test_nothing_is_compared_where_that_is_off"): ("eval.compare",),
    (RUN, "test_few_labels_are_as_many_as_asked"): ("eval.few_labels",),
    ("stages/test_heritage.py", "test_a_run_without_such_sources_holds_out_its_own_share"): (
        "eval.seen",
    ),
    (RUN, "test_it_logs_as_often_as_asked"): ("log.every_steps",),
    ("train/test_loggers.py", "test_a_run_that_goes_on_is_the_same_run_there"): (
        "log.to",
        "log.project",
    ),
    (RUN, "test_it_keeps_the_newest_checkpoints_and_each_of_a_period"): (
        "checkpoint.every_steps",
        "checkpoint.keep",
        "checkpoint.keep_period",
    ),
    # Pipelines
    (PIPELINE, "test_fields_of_pretraining_and_of_the_first_draw_are_followed"): (
        "pipeline.seed",
        "pipeline.runs",
    ),
    (PIPELINE, "test_bad_recipes_are_refused_before_anything_starts"): (
        "pipeline.order",
        "pipeline.probes.run",
        "pipeline.probes.tap",
    ),
    (PIPELINE, "test_the_table_holds_what_the_runs_have_written"): (
        "pipeline.stage",
        "pipeline.table",
        "pipeline.differences",
        "pipeline.probes.labels",
        "pipeline.probes.seed",
    ),
}


def fields():
    """Return the names of all fields that there are; those of a view with `*` for its name."""
    found = set()
    for method in declaration.known():
        for name, _ in freeze.leaves(recipes.base(method)):
            found.add(re.sub(r"^(augment\.views)\.\w+\.", r"\1.*.", name))
    found |= {f"pipeline.{name}" for name in pipeline.FIELDS if name != "probes"}
    return found | {f"pipeline.probes.{name}" for name in pipeline.PROBE}


def test_every_field_is_seen_at_work_by_one_test():
    seen = [name for names in SEEN.values() for name in names]
    missing, unknown = fields() - set(seen), set(seen) - fields()
    assert not missing, f"name in SEEN the test that would fail if they were ignored: {missing}"
    assert not unknown, f"there are no such fields any more: {unknown}"
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("file, test", SEEN, ids=lambda value: str(value).partition("/")[2][:40])
def test_a_test_that_is_named_is_there_and_speaks_of_the_field(file, test):
    text = (TESTS / file).read_text()
    assert re.search(rf"^def {test}\(", text, re.M), f"tests/{file} has no {test}"
    for name in SEEN[file, test]:
        assert re.search(rf"(\b|_){name.rpartition('.')[2]}\b", text), f"{file} lacks {name}"


def test_both_views_are_tested_apart():
    """By a parameter that is the changed view; all but one test of views have it."""
    text = (TESTS / VIEW).read_text()
    for (file, test), names in SEEN.items():
        if file == VIEW and any(".*." in name for name in names):
            assert re.search(rf"^@PAIR\n(@.*\n)?def {test}\(view\b", text, re.M), test


LISTS = {
    "OPEN": recipes.OPEN,
    "INHERITED": recipes.INHERITED,
    "INHERITED_CROP": tuple(f"augment.views.first.{name}" for name in recipes.INHERITED_CROP),
    "FREE": tuple(name for name in records.FREE if name not in records.NOT_RECIPE),
    "CHOICES": tuple(CHOICES),
    "RULES": tuple(name for names, _, _ in RULES for name in names),
    "POINTERS": pipeline.POINTERS,
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_fields_name_fields(name):
    for field in LISTS[name]:
        recipes.get(recipes.base(), field)


def test_every_field_of_text_or_number_has_a_rule_or_choices_or_means_a_name():
    """A misspelt choice that nobody checks would be taken for another one, and stay unnoticed."""
    free = {
        *("method", "data.name", "data.path", "data.split", "data.eval_split", "data.index"),
        *("labels.use", "init.run", "init.parts", "distill.teacher", "data.white_level"),
        "optim.drops",  # numbers with commas
        *("log.to", "log.project"),  # names with commas; a name
    }
    checked = {*LISTS["CHOICES"], *free}
    texts = {n for n, v in freeze.leaves(recipes.base()) if isinstance(v, str)}
    assert {name for name in texts if not name.endswith(".group")} == checked - {"model.depth"}
