"""Plans against the official arithmetic (`tf2/model.py`, `tf2/run.py`), worked out by hand."""

import pytest

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.train import timetable as timetables

IMAGENET = 1_281_167


def timetable(examples=IMAGENET, **fields):
    c = recipes.base()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return timetables.make(c, examples)


def test_the_official_run_on_imagenet():
    p = timetable()
    assert p.total_steps == 31_279  # 128 116 700 views of images // 4096, and one more
    assert p.warmup_steps == 3127
    assert p.peak_rate == pytest.approx(4.8)
    assert p.epochs == pytest.approx(100.0017, abs=1e-4)
    assert p.evaluate_every == 3128  # 3127.8


def test_the_official_run_on_cifar():
    p = timetable(50_000, train__batch_size=512, train__epochs=1000.0, optim__base_lr=1.0)
    assert (p.total_steps, p.warmup_steps, p.peak_rate) == (97_657, 976, 2.0)


def test_square_root_scaling_meets_linear_at_4096():
    root = timetable(optim__base_lr=0.075, optim__lr_scaling="sqrt")
    assert root.peak_rate == pytest.approx(timetable().peak_rate)


def test_steps_override_epochs():
    assert timetable(train__steps=5000).total_steps == 5000


@pytest.mark.parametrize(
    "epochs, call, expected",
    # 1000 images in batches of 64: 15.6 steps an epoch.
    [(1.0, 1, 16), (1.0, 4, 16), (2.0, 10, 30), (0.01, 4, 4), (0.0, 4, 0)],
)
def test_evaluation_falls_on_the_end_of_a_chunk(epochs, call, expected):
    p = timetable(1000, train__batch_size=64, train__steps_per_call=call, eval__every_epochs=epochs)
    assert p.evaluate_every == expected


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_epochs=10 is 3127 steps.*whole run of 3127:"):
        timetable(train__steps=3127)
    assert timetable(train__steps=3128).warmup_steps == 3127
