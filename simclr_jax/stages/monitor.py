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

from simclr_jax import parallel
from simclr_jax.data.sources import Images
from simclr_jax.evaluate import features, geometry, knn, linear_probe, scores
from simclr_jax.evaluate.subsets import few_labels
from simclr_jax.losses.nt_xent import l2_normalize
from simclr_jax.stages.views import eval_image
from simclr_jax.train.stage import TrainState

Variables = dict[str, Any]  # params and batch_stats

PAIRS = 256  # held-out images, at most, whose two views the label-free indicators compare


class Monitor:
    """Measures the encoder in a `TrainState` on held-out images, in inference mode.

    Nothing here changes parameters or statistics, and nothing is chosen by looking at the result.
    """

    def __init__(
        self,
        config: ConfigDict,
        encoder: Any,
        head: Any,
        probe: Any,
        make_views: Callable,
        train: Images,
        test: Images,
        mesh: Mesh,
    ):
        self._config, self._train, self._test, self._mesh = config, train, test, mesh
        dtype = jnp.dtype(config.train.dtype)
        size, grid = config.data.image_size, config.augment.grid

        def prepare(images):
            return jax.vmap(lambda image: eval_image(image, size, grid))(images)

        def embed(variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
            def part(name: str) -> Variables:
                return {kind: tree.get(name, {}) for kind, tree in variables.items()}

            h = encoder.apply(part("encoder"), images.astype(dtype), train=False)["h"]
            z = head.apply(part("head"), h, train=False)[-1]
            outputs = {"h": h, "z": z.astype(h.dtype)}
            if probe:
                logits = probe.apply(part("probe"), h)
                outputs["guess"] = jnp.argmax(logits, axis=-1)
            return outputs

        # Kept as attributes: `features.extract` compiles once per function object.
        self._encode = lambda variables, images: embed(variables, prepare(images))
        self._encode_views = embed
        self._pixels = lambda _, images: prepare(images).reshape(len(images), -1)
        self._pairs = jax.jit(make_views)

    @property
    def protocol(self) -> dict[str, Any]:
        """Return what defines the scores of `compare`."""
        return {
            "features": "h, inference mode",
            "bank": f"{self._config.data.split}: {self._train.fingerprint()}",
            "held_out": f"{self._config.data.eval_split}: {self._test.fingerprint()}",
            "held_out_images": len(self._test),
            "knn": {"k": self._k(), "temperature": self._config.eval.knn_temperature},
            "probe": {
                "solver": "L-BFGS on standardised features",
                "penalties": linear_probe.PENALTIES,
                "chosen_on": f"{linear_probe.VALIDATION:.0%} of the labels it may use",
                "few_labels_per_class": self._config.eval.few_labels,
                "few_labels_seed": 0,
            },
        }

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return kNN and probe accuracy on held-out images, and label-free signs of collapse."""
        metrics = self._geometry(state)
        test = self._extract(self._encode, state, self._test)
        if "guess" in test:
            metrics["probe_accuracy"] = float(np.mean(test["guess"] == self._test.labels))
        if self._config.eval.knn:
            bank = self._extract(self._encode, state, self._train)["h"]
            metrics["knn_accuracy"] = self._knn_score(bank, test["h"])
        return metrics

    def compare(self, trained: TrainState, untrained: TrainState) -> dict[str, dict[str, Any]]:
        """Score raw pixels, the untrained and the trained encoder in the same way.

        Returns:
          For each of `raw pixels`, `untrained encoder` and `pretrained encoder`: for each score
          its accuracy on the evaluation split and a 95 % bootstrap interval over its images.
          Nothing without labels.
        """
        if self._train.labels is None or self._test.labels is None:
            return {}
        rows: dict[str, Callable] = {
            "raw pixels": self._raw_pixels,
            "untrained encoder": functools.partial(self._features, untrained),
            "pretrained encoder": functools.partial(self._features, trained),
        }
        return {
            name: self._scores(make(self._train), make(self._test)) for name, make in rows.items()
        }

    def _scores(self, bank: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
        labels, classes, e = self._train.labels, self._train.classes, self._config.eval
        assert labels is not None  # `compare` has seen to it
        few = few_labels(labels, e.few_labels, seed=0)

        def probe(labelled: np.ndarray) -> np.ndarray:
            return linear_probe.predict(bank, labels, labelled, queries, classes)

        guesses = {
            "kNN": knn.classify(bank, labels, queries, classes, self._k(), e.knn_temperature),
            f"probe, {e.few_labels} labels a class": probe(few),
            "probe, all labels": probe(np.arange(len(labels))),
        }
        found = {}
        for name, guess in guesses.items():
            right = guess == self._test.labels
            low, high = scores.bootstrap_interval(right, seed=0)
            found[name] = {"accuracy": float(np.mean(right)), "low": low, "high": high}
        return found

    def _geometry(self, state: TrainState) -> dict[str, float]:
        """Compare the two views of held-out images; every evaluation uses the same views."""
        count = min(PAIRS, len(self._test))
        rows = np.arange(count)
        # Positions that no training example has, so these views are not those of training.
        positions = parallel.split64(np.uint64(2**63) + rows.astype(np.uint64))
        batch = {"image": self._test.pixels[:count], "position": positions, "start": positions}
        views = np.asarray(self._pairs(batch), np.float32)  # [2, count, h, w, c]
        found = {}
        first, second = (
            self._extract(self._encode_views, state, Images(view, None, 0)) for view in views
        )
        for name in ("h", "z"):
            a, b = l2_normalize(first[name]), l2_normalize(second[name])
            found[f"alignment_{name}"] = float(geometry.alignment(a, b))
            found[f"uniformity_{name}"] = float(geometry.uniformity(a))
            found[f"effective_rank_{name}"] = float(geometry.effective_rank(first[name]))
        return found

    def _extract(self, encode: Callable, state: TrainState, images: Images) -> Any:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return features.extract(encode, variables, images.pixels, self._mesh)

    def _features(self, state: TrainState, images: Images) -> np.ndarray:
        return self._extract(self._encode, state, images)["h"]

    def _raw_pixels(self, images: Images) -> np.ndarray:
        return features.extract(self._pixels, None, images.pixels, self._mesh)

    def _k(self) -> int:
        return min(self._config.eval.knn_k, len(self._train))

    def _knn_score(self, bank: np.ndarray, queries: np.ndarray) -> float:
        return knn.accuracy(
            bank,
            self._train.labels,
            queries,
            self._test.labels,
            self._train.classes,
            self._k(),
            self._config.eval.knn_temperature,
        )
