"""How well a classifier does on held-out images, during a run and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Outputs(NamedTuple):
    """Of all held-out images: logits `[m, classes]`, and the rows that could be read; None: all."""

    logits: np.ndarray
    readable: np.ndarray | None

    @property
    def rows(self) -> np.ndarray:
        """Return the rows that could be read."""
        return np.arange(len(self.logits)) if self.readable is None else self.readable


class Accuracy:
    """Measures the classifier in a `TrainState` on held-out images, in inference mode.

    Nothing is chosen by looking at the result: what is reported in the end is the last state.

    Args:
      config: a recipe.
      network: with the classifier.
      inputs: whose held-out images have labels; without any, there is no accuracy.
      mesh: the devices.
      teacher: another classifier and its variables, with which this one is compared: during the run
        by how often they choose the same class, and at the end by their scores.
    """

    def __init__(
        self,
        config: ConfigDict,
        network: LabelledNetwork,
        inputs: Inputs,
        mesh: Mesh,
        teacher: tuple[Classify, Any] | None = None,
    ):
        self._config, self._inputs, self._mesh = config, inputs, mesh
        self._tap = network.tap
        self._labelled = label_choice.in_words(config)  # as they are used: a list may change later
        self._counts: dict[str, int] = {}  # of the images that were scored last
        # Kept as an attribute: `features.extract` compiles once per function object.
        self._classify = self._prepared(network)
        self._teacher = (self._prepared(teacher[0]), teacher[1]) if teacher else None
        self._taught: Outputs | None = None  # of the teacher, the same at any step

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

        With several labels an image, `mAP` and the sum over classes. With a teacher also
        `held_out_agreement`, the share of them, with labels or without, in which both choose the
        same class.
        """
        labelled, teacher = bool(self._inputs.test.classes), self._teacher
        found = self._outputs(self._classify, state.variables) if labelled or teacher else None
        right = self._right(found) if found and labelled else {}
        return right | (self._as_the_teacher(found, *teacher) if found and teacher else {})

    def _right(self, found: Outputs) -> dict[str, float]:
        logits, labels = self._that_count(found)
        if labels.ndim == 2:
            summed, _ = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
            mean = scores.statistics(labels, logits)["mAP"](np.ones(len(labels)))
            return {"mAP": float(mean), "held_out_loss": float(summed)}
        losses = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        right = np.argmax(logits, axis=1) == labels
        return {"accuracy": float(np.mean(right)), "held_out_loss": float(np.mean(losses))}

    def _as_the_teacher(
        self, found: Outputs, classify: Classify, variables: Any
    ) -> dict[str, float]:
        if self._taught is None:
            self._taught = self._outputs(classify, variables)
        both = np.intersect1d(found.rows, self._taught.rows)
        choices = (outputs.logits[both].argmax(axis=1) for outputs in (found, self._taught))
        return {"held_out_agreement": float(np.mean(np.equal(*choices)))}

    def compare(self, state: TrainState) -> dict[str, dict[str, dict[str, float]]]:
        """Return top-1, mean per class and, of more than 5 classes, top-5 with 95 % intervals.

        With several labels an image, mAP and its 11-point form.

        Beside them stands `chance.COMMONEST`, if labels of training images are known.
        """
        if not (self._config.eval.compare and self._inputs.test.classes):
            return {}
        found, train = {}, self._inputs.train
        judged = {"classifier": (self._classify, state.variables)}
        judged |= {"teacher": self._teacher} if self._teacher else {}
        for name, (classify, variables) in judged.items():
            logits, labels = self._that_count(self._outputs(classify, variables))
            found[name] = _summary(labels, logits)
        readable = self._inputs.readable(train, train)  # as far as they are in memory
        if len(taught := counted(train.labels, readable)):
            assert train.labels is not None  # or none of them would count
            guess = chance.outputs(train.labels[taught], labels, logits.shape[1])
            found = {chance.COMMONEST: _summary(labels, guess), **found}
        return found

    def _prepared(self, classify: Classify) -> Classify:
        return lambda variables, images: classify(variables, self._inputs.prepare(images))

    def _outputs(self, classify: Classify, variables: Any) -> Outputs:
        test = self._inputs.test
        images = self._inputs.for_evaluation(test)
        logits = features.extract(classify, variables, images, self._mesh)
        return Outputs(logits, self._inputs.readable(test, images))

    def _that_count(self, found: Outputs) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and labels of the held-out images that count."""
        count = scored(self._inputs.test, found.readable)
        self._counts = count.about("held_out")
        return found.logits[count.rows], count.labels


def _summary(labels: np.ndarray, outputs: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        score: {"accuracy": of["value"], "low": of["low"], "high": of["high"]}
        for score, of in scores.summary(labels, outputs).items()
    }
