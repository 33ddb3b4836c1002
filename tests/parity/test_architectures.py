"""Variables of every recorded model: our names for them, and what is inferred from them alone."""

from __future__ import annotations

import golden
import pytest
import sections

from simclr_jax.interop.infer import infer
from simclr_jax.interop.tensorflow_files import Checkpoint


@pytest.mark.parametrize("recording", golden.cases("model"))
def test_names_are_the_official_ones(recording):
    assert list(sections.names(recording, "encoder")) == list(recording.variables)


@pytest.mark.parametrize("recording", golden.cases("model") + golden.cases("init"))
def test_architecture_is_inferred(recording):
    shapes = {name: shape for name, (shape, _) in recording.variables.items()}
    flavour = recording.spec["flavour"]
    found = infer(Checkpoint(recording.name, flavour, None, shapes, {}, [], {}, None)).architecture
    wanted = sections.architecture(recording)
    assert sections.knowable(found) == sections.knowable(wanted)
