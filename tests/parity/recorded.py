"""Settings of a recording: what the official programs assume, what was read, what only explains.

A comparison is worth what it read. So every setting of a recording must have been read by the test
that compares it, or stand in `EXPLAINED`; and an official flag must have a value that the official
program knows. Anything else is an error with the file, the key and the value: a setting that nobody
reads would be judged by a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

DEPTHS = (18, 34, 50, 101, 152, 200)
CHOICES = {
    "learning_rate_scaling": ("linear", "sqrt", "none"),
    "optimizer": ("lars", "momentum", "adam"),
    "proj_head_mode": ("none", "linear", "nonlinear"),
    "resnet_depth": DEPTHS,
    "train_mode": ("pretrain", "finetune"),
}

# Official flags that decide what is recorded, and their values if a recording leaves them out.
NETWORK = {
    "resnet_depth": 50,
    "width_multiplier": 1,
    "image_size": 224,
    "sk_ratio": 0.0,
    "se_ratio": 0.0,
}
HEAD = {
    "proj_head_mode": "nonlinear",
    "num_proj_layers": 3,
    "proj_out_dim": 128,
    "ft_proj_selector": 0,
}
NORM = {"global_bn": True, "batch_norm_decay": 0.9}
LENGTH = {
    "learning_rate": 0.3,
    "learning_rate_scaling": "linear",
    "warmup_epochs": 10.0,
    "train_batch_size": 512,
    "train_epochs": 100,
    "train_steps": 0,
}
TRAINING = {
    "train_mode": "pretrain",
    "optimizer": "lars",
    "weight_decay": 1e-6,
    "momentum": 0.9,
    "temperature": 0.1,
    "hidden_norm": True,
    "fine_tune_after_block": -1,
    "lineareval_while_pretraining": True,
    "use_blur": True,
}
DEFAULTS = {
    "tf1": NETWORK | HEAD | NORM | LENGTH | TRAINING | {"weight_decay": 1e-4},
    "tf2": NETWORK | HEAD | NORM | LENGTH | TRAINING,
}
# Flags that decide nothing that is recorded: images, initial values and draws are given.
RUN = (
    *("cache_dataset", "color_jitter_strength", "data_dir", "dataset", "eval_*", "keep_*", "mode"),
    *("master", "model_dir", "tpu_*", "gcp_project", "train_split", "train_summary_steps"),
    *("use_tpu", "variable_schema", "checkpoint*", "zero_init_logits_layer"),
)

# Words for people, whatever the kind.
WORDS = re.compile(r"(.*_)?(note|rules?|meaning|formula|arrays|match|layout|how|objective)")

# By kind, the settings that repeat an array, a shape or another setting, or decide nothing there:
# groups of flags, and patterns in which `[]` stands for any entry of a list. The keys are the kinds
# that have tests.
EXPLAINED: dict[str, tuple[dict[str, Any] | str, ...]] = {
    "augment_law": ("n batch order factors law strength",),
    "augment_op": (
        "aspect batch height width images images.shape resize strength selector columns",
        "mean_std_rows first_boxes quantiles largest_* calls[].params.strength calls[].err",
    ),
    "autoencoder": (),
    "byol": (),
    "byol_loss": ("n dim",),
    "byol_schedule": (),
    "checkpoint": (
        *(LENGTH, TRAINING, "global_bn batch_norm_decay"),
        "folder saved_model",  # read when tests are collected
        "prefix checkpoint_* ckpt_digest_rows ambiguous* files_* left_out eval_outputs",
        "hub hub.* eval_result.* eval_set.* saved_model_*",
    ),
    "colour_bins": (),
    "colourisation": (),
    "context_encoder": (),
    "counting": (),
    "debiased": ("anchors_clamped embeddings",),
    "decoupled": (),
    "denoising_autoencoder": (),
    "distill": (),
    "exemplar_triplet": (),
    "fnc_attraction": (),
    "fnc_elimination": (),
    "fnc_memory": (),
    "head": (
        *(NETWORK, LENGTH, TRAINING, "batch dim hiddens out outputs scalar moved updated"),
        "trainable* no_gradient variables_in_block_5 update_ops",
    ),
    "hard_negative": (),
    "infonce": (),
    "infonce_cpc": (),
    "init": (HEAD, NORM, LENGTH, TRAINING),
    "instdisc_nce": (),
    "instdisc_sampled_softmax": ("Z eps",),  # of the other loss of that program
    "instdisc_softmax": (),
    "jigsaw_permutations": (),
    "lars": (
        "made_by keras_config.name keras_config.is_legacy_optimizer keras_config.jit_compile",
        "keras_config.ema_* keras_config.momentum",
    ),
    "margin": (),
    "model": (
        *(HEAD, LENGTH, TRAINING, "image_size endpoint_* activation_shapes.* moved trainable*"),
        "update_ops parameters_* all_parameters",
    ),
    "nt_logistic": (),
    "moco": (),
    "moco_queue": (),
    "moco_shuffle": (),
    "ntxent": ("returns grad_sum grad_mean",),
    "pairwise": (),
    "patch_concat": (),
    "patches": (),
    "pcl": (),
    "pcl_density": (),
    "preprocess": ("color_jitter_strength output_range draw_order calls[].err",),
    "relative_location": (),
    "rgb2lab": (),
    "rotation": ("height width",),
    "schedule": (NETWORK, HEAD, NORM, TRAINING, "scaled_lr"),
    "simsiam": (),
    "simsiam_loss": ("n dim",),
    "solarize": (),
    "soft_nearest_neighbour": (),
    "supcon": (),
    "trajectory": (
        "other_flags global_step_after global_batch float64 labels step_arrays initial_values",
        "variables_to_train trainable unchanged_after_last_step eval losses_meaning",
        "views.k views.size views.replicas",
    ),
    "triplet_hard": (),
    "triplet_semi_hard": (),
    "weight_decay": (
        *(LENGTH, NORM, "fine_tune_after_block momentum temperature hidden_norm use_blur"),
        "counted_variables trainable_variables law cases[].*_term cases[].first cases[].last",
        "cases[].without_* cases[].returns_*",
    ),
}

# Kinds of recordings of methods that are not here yet. Whoever writes the test of one takes it out.
NOT_YET: set[str] = set()


class Settings(Mapping[str, Any]):
    """Settings that note which of them were read; groups and lists of groups among them too."""

    def __init__(self, values: Mapping[str, Any], seen: set[str] | None = None, path: str = ""):
        self._values, self._path = values, path
        self.seen: set[str] = set() if seen is None else seen

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        path = f"{self._path}{key}"
        self.seen.add(path)
        if isinstance(value, dict):
            return Settings(value, self.seen, f"{path}.")
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            return [Settings(entry, self.seen, f"{path}[].") for entry in value]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, changes: Mapping[str, Any]) -> Settings:
        """Return settings with other values; reading them counts for these as well."""
        return Settings({**self._values, **changes}, self.seen, self._path)

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Yield path and value of every setting, groups aside, that was not read."""
        for path, value in _leaves(self._values, self._path):
            if path not in self.seen:
                yield path, value


class Flags(Settings):
    """Official flags: a missing one has its default, a value that makes no sense is an error."""

    def __init__(self, values: Settings, flavour: str):
        # The raw values, without having read any.
        super().__init__(values._values, values.seen, values._path)
        self._defaults = DEFAULTS.get(flavour, {})

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            return self._defaults[key]
        value = super().__getitem__(key)
        if key in CHOICES and value not in CHOICES[key]:
            raise ValueError(f"{self._path}{key} is {value!r}: known are {CHOICES[key]}")
        if isinstance(self._defaults.get(key), bool) and not isinstance(value, bool):
            raise ValueError(f"{self._path}{key} is {value!r}: it must be true or false")
        return value

    def __or__(self, changes: Mapping[str, Any]) -> Flags:
        changed = Flags(super().__or__(changes), "")
        changed._defaults = self._defaults
        return changed


def _leaves(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        entries = value if isinstance(value, list) else [value]
        suffix = "[]." if isinstance(value, list) else "."
        if entries and all(isinstance(entry, Mapping) and entry for entry in entries):
            for entry in entries:
                yield from _leaves(entry, f"{path}{key}{suffix}")
        else:
            yield f"{path}{key}", value


def unknown(kind: str, settings: Settings) -> list[str]:
    """Return "key = value" of each setting that was not read, and does not merely explain."""
    return sorted(
        {
            f"{path} = {value!r:.100}"
            for path, value in settings.unread()
            if not _explains(kind, path)
        }
    )


def _explains(kind: str, path: str) -> bool:
    flag = re.sub(r"^((cases\[\]\.)?flags|base)\.", "", path)
    patterns = [*RUN]
    for group in EXPLAINED[kind]:
        patterns += group.split() if isinstance(group, str) else group
    return bool(WORDS.fullmatch(path.rpartition(".")[2])) or any(
        fnmatch(name, pattern.replace("[]", "[[]]"))
        for name in (path, flag)
        for pattern in patterns
    )
