"""How well a classifier does on held-out images, during a run and at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.evaluate import chance, features, scores
from simclr_jax.losses.cross_entropy import binary_cross_entropy
from simclr_jax.stages import labels as label_choice
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.labelled_network import LabelledNetwork
from simclr_jax.stages.scored import scored
from simclr_jax.train.stage import TrainState
from simclr_jax.unlabelled import counted

# From variables and images `[b, h, w, c]` to logits `[b, classes]`.
Classify = Callable[[Any, jax.Array], jax.Array]


class Accuracy:
    """Measures the classifier in a `TrainState` on held-out images, in inference mode.

    Nothing is chosen by looking at the result: what is reported in the end is the last state.

    Args:
      config: a recipe.
      network: with the classifier.
      inputs: whose held-out images have labels; without any, nothing is measured.
      mesh: the devices.
      beside: other classifiers and their variables, to be scored at the end by name.
    """

    def __init__(
        self,
        config: ConfigDict,
        network: LabelledNetwork,
        inputs: Inputs,
        mesh: Mesh,
        beside: Mapping[str, tuple[Classify, Any]] | None = None,
    ):
        self._config, self._inputs, self._mesh = config, inputs, mesh
        self._tap = network.tap
        self._labelled = label_choice.in_words(config)  # as they are used: a list may change later
        self._counts: dict[str, int] = {}  # of the images that were scored last
        # Kept as an attribute: `features.extract` compiles once per function object.
        self._classify = self._prepared(network)
        self._beside = {
            name: (self._prepared(classify), variables)
            for name, (classify, variables) in (beside or {}).items()
        }

    def protocol(self) -> dict[str, Any]:
        """Return what defines the scores of the last `compare`."""
        test, c = self._inputs.test, self._config
        taught = label_choice.needed(c)
        of = (
            "labels learned from"
            if taught
            else "training images' labels, none of them learned from"
        )
        return {
            "classifier": f"linear on {self._tap}, inference mode",
            "labelled": self._labelled,
            "images": f"{c.data.split}: {self._inputs.train.fingerprint()}",
            "held_out": f"{c.data.eval_split}: {test.fingerprint()}",
            **self._counts,
            chance.COMMONEST: f"of the {of}, guessed for all held-out images",
        }

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return `accuracy` (top-1) and `held_out_loss` (nats) on held-out images.

        With several labels an image, `mAP` and the sum over classes.
        """
        if not self._inputs.test.classes:
            return {}
        logits, labels = self._outputs(self._classify, state.variables)
        if labels.ndim == 2:
            summed, _ = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
            mean = scores.statistics(labels, logits)["mAP"](np.ones(len(labels)))
            return {"mAP": float(mean), "held_out_loss": float(summed)}
        losses = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        right = np.argmax(logits, axis=1) == labels
        return {"accuracy": float(np.mean(right)), "held_out_loss": float(np.mean(losses))}

    def compare(self, state: TrainState) -> dict[str, dict[str, dict[str, float]]]:
        """Return top-1, mean per class and, of more than 5 classes, top-5 with 95 % intervals.

        With several labels an image, mAP and its 11-point form.

        Beside them stands `chance.COMMONEST`, if labels of training images are known.
        """
        if not (self._config.eval.compare and self._inputs.test.classes):
            return {}
        found, train = {}, self._inputs.train
        judged = {"classifier": (self._classify, state.variables), **self._beside}
        for name, (classify, variables) in judged.items():
            logits, labels = self._outputs(classify, variables)
            found[name] = _summary(labels, logits)
        readable = self._inputs.readable(train, train)  # as far as they are in memory
        if len(taught := counted(train.labels, readable)):
            assert train.labels is not None  # or none of them would count
            guess = chance.outputs(train.labels[taught], labels, logits.shape[1])
            found = {chance.COMMONEST: _summary(labels, guess), **found}
        return found

    def _prepared(self, classify: Classify) -> Classify:
        return lambda variables, images: classify(variables, self._inputs.prepare(images))

    def _outputs(self, classify: Classify, variables: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and labels of all held-out images that count."""
        test = self._inputs.test
        images = self._inputs.for_evaluation(test)
        logits = features.extract(classify, variables, images, self._mesh)
        count = scored(test, self._inputs.readable(test, images))
        self._counts = count.about("held_out")
        return logits[count.rows], count.labels


def _summary(labels: np.ndarray, outputs: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        score: {"accuracy": of["value"], "low": of["low"], "high": of["high"]}
        for score, of in scores.summary(labels, outputs).items()
    }
