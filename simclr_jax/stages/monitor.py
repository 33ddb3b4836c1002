"""What is measured on held-out images while an encoder is pretrained, and at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import recipes
from simclr_jax.data.sources import Source
from simclr_jax.evaluate import chance, features, geometry, knn, linear_probe, logistic, scores
from simclr_jax.evaluate.subsets import few_labels
from simclr_jax.stages.encoder import PIXELS, embedder, tap_name
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.scored import lacking, scored
from simclr_jax.stages.views import pair, view_maker
from simclr_jax.train.stage import TrainState

Variables = dict[str, Any]  # params and batch_stats

PENALTIES = linear_probe.PENALTIES[::4]  # of the probe, in the interest of time
PAIRS = 256  # held-out images, at most, whose two views the label-free indicators compare


class Monitor:
    """Measures the encoder in a `TrainState` on held-out images, in inference mode.

    Nothing here changes parameters or statistics, and nothing is chosen by looking at the result.
    """

    def __init__(self, config: ConfigDict, probe: Any, inputs: Inputs, mesh: Mesh):
        self._config, self._inputs, self._mesh = config, inputs, mesh
        self._train, self._test = inputs.train, inputs.test
        self._counts: dict[str, dict[str, int]] = {}  # of the images that were scored last
        self._few = config.eval.few_labels  # of a class, as they were used last
        tapped = tap_name(config, config.eval.probe_tap)
        vectors = embedder(config, ("h", tapped))

        def judged(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
            found = vectors(variables, inputs.prepare(images))
            if not probe:
                return {"h": found["h"]}
            logits = probe.apply({"params": variables["params"]["probe"]}, found[tapped])
            return {"h": found["h"], "guess": jnp.argmax(logits, axis=-1)}

        # Kept as attributes: `features.extract` compiles once per function object.
        vectors_seen = ("h", "z") if recipes.head_layers(config) else ("h",)
        self._encode, self._encode_views = judged, embedder(config, vectors_seen)
        self._encoders: dict[str, Callable] = {}
        pixels = embedder(config, ("pixels",))
        self._pixels = lambda _, images: pixels({}, inputs.prepare(images))["pixels"]
        self._make_views = jax.jit(view_maker(config))

    def protocol(self) -> dict[str, Any]:
        """Return what defines the scores of the last `compare`."""
        bank = self._counts.get("training", {}).get("training_images", len(self._train))
        return {
            "features": "h, inference mode",
            "bank": f"{self._config.data.split}: {self._train.fingerprint()}",
            "held_out": f"{self._config.data.eval_split}: {self._test.fingerprint()}",
            **self._counts.get("training", {}),
            **self._counts.get("held_out", {}),
            chance.COMMONEST: "of the training images' labels, guessed for all held-out images",
            "raw_pixels": f"shrunk to {PIXELS}x{PIXELS} where they are larger",
            "knn": {
                "k": min(self._config.eval.knn_k, bank),
                "temperature": self._config.eval.knn_temperature,
            },
            "probe": {
                "solver": "L-BFGS on centred features of mean square 1",
                "penalties": PENALTIES,
                "chosen_on": f"a fifth of the labels it may use, in turn up to {linear_probe.FEW}",
                "few_labels_per_class": self._few,
                "few_labels_seed": 0,
            },
        }

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return kNN and probe accuracy on held-out images, and label-free signs of collapse."""
        metrics = self._geometry(state)
        encode = functools.partial(self._extract, self._encode, state.variables)
        wanted = self._config.eval
        if not (wanted.probe or wanted.knn):
            return metrics
        test = encode(self._test)
        if wanted.probe:
            metrics["probe_accuracy"] = float(np.mean(test["guess"] == test["label"]))
        if wanted.knn:
            bank = encode(self._train)
            guess = self._nearest(bank["h"], bank["label"], test["h"])
            metrics["knn_accuracy"] = float(np.mean(guess == test["label"]))
        return metrics

    def compare(self, trained: TrainState, untrained: TrainState) -> dict[str, dict[str, Any]]:
        """Score raw pixels, the untrained and the trained encoder in the same way.

        Returns:
          For each of them, and for `chance.COMMONEST`: for each score its accuracy on the
          evaluation split and a 95 % bootstrap interval over its images. Nothing without labels,
          or with `eval.compare` off.
        """
        single = not (self._train.multi_label or self._test.multi_label)
        if not (self._config.eval.compare and single) or lacking(self._train, self._test):
            return {}
        rows: dict[str, Callable[[Source], Any]] = {
            "raw pixels": functools.partial(self._extract, self._pixels, None),
            "untrained encoder": functools.partial(
                self._extract, self._encode, untrained.variables
            ),
            "pretrained encoder": functools.partial(self._extract, self._encode, trained.variables),
        }
        found: dict[str, dict[str, Any]] = {}
        for name, make in rows.items():
            bank, queries = make(self._train), make(self._test)
            found[name] = self._scores(bank, queries)
        guess = chance.outputs(bank["label"], queries["label"], self._train.classes).argmax(axis=1)
        level = _accuracy(guess == queries["label"])
        return {chance.COMMONEST: dict.fromkeys(found[name], level), **found}

    def _scores(self, bank: Any, queries: Any) -> dict[str, Any]:
        labels, classes, e = bank["label"], self._train.classes, self._config.eval
        # A class may have lost images that could not be read.
        count = min(e.few_labels, int(np.bincount(labels)[np.unique(labels)].min()))
        few, self._few = few_labels(labels, count, seed=0), count

        def probe(labelled: np.ndarray) -> np.ndarray:
            fitted = linear_probe.fit(
                bank["h"][labelled],
                labels[labelled],
                classes,
                linear_probe.splits(labels[labelled], seed=0),
                linear_probe.accuracy,
                PENALTIES,
            )
            return np.argmax(logistic.logits(fitted.weights, queries["h"]), axis=1)

        guesses = {
            "kNN": self._nearest(bank["h"], labels, queries["h"]),
            f"probe, {count} labels a class": probe(few),
            "probe, all labels": probe(np.arange(len(labels))),
        }
        return {name: _accuracy(guess == queries["label"]) for name, guess in guesses.items()}

    def training_features(
        self, variables: Variables, tap: str = "h"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode the training images that can be read, in inference mode.

        Returns:
          Features `[m, d]`, and the number of each image, int `[m]`.
        """
        if tap not in self._encoders:  # `features.extract` compiles once per function object
            vectors = embedder(self._config, (tap,))
            self._encoders[tap] = lambda variables, images: vectors(
                variables, self._inputs.prepare(images)
            )
        images = self._inputs.for_evaluation(self._train)
        found = self._run(self._encoders[tap], variables, images)[tap]
        readable = self._inputs.readable(self._train, images)
        numbers = np.arange(len(found)) if readable is None else readable
        return found[numbers], numbers

    def _geometry(self, state: TrainState) -> dict[str, float]:
        """Look at embeddings of held-out views, which are the same at every evaluation."""
        views = pair(self._make_views(self._inputs.held_out(PAIRS)))
        first, *second = (
            self._run(self._encode_views, state.variables, np.asarray(view, np.float32))
            for view in views
        )
        return {
            f"{indicator}_{name}": value
            for name in first
            for indicator, value in geometry.indicators(
                first[name], second[0][name] if second else None
            ).items()
        }

    def _run(self, encode: Callable, variables: Any, images: Any) -> Any:
        repeats = self._config.train.deterministic
        return features.extract(encode, variables, images, self._mesh, deterministic=repeats)

    def _extract(self, encode: Callable, variables: Variables | None, source: Source) -> Any:
        """Return what `encode` makes of all images that count, with their `label`."""
        images = self._inputs.for_evaluation(source)
        found = self._run(encode, variables, images)
        found = found if isinstance(found, dict) else {"h": found}
        count = scored(source, self._inputs.readable(source, images))
        role = "training" if source is self._train else "held_out"
        self._counts[role] = count.about(role)
        return {name: x[count.rows] for name, x in found.items()} | {"label": count.labels}

    def _nearest(self, bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
        e, classes = self._config.eval, self._train.classes
        k = min(e.knn_k, len(bank))
        return knn.classify(bank, labels, queries, classes, k, e.knn_temperature)


def _accuracy(right: np.ndarray) -> dict[str, float]:
    low, high = scores.bootstrap_interval(right, seed=0)
    return {"accuracy": float(np.mean(right)), "low": low, "high": high}
