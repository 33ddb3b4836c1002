"""Each flag of the doors that judge, embed and search reaches the option that it is named for."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import sys
import types

import absl
import pytest
from absl import flags

from simclr_jax import parallel
from simclr_jax.embedding import embed, search
from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe, transfer, transfer_finetune
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.solvers import Settings
from simclr_jax.judging.tuned_runs import DECAYS, RATES, Grid


@pytest.fixture
def asked(monkeypatch):
    """Return the function from a door and its arguments to what it asks to be run."""

    def ask(door, place, *arguments):
        values, calls = flags.FlagValues(), []
        stub = types.ModuleType("flags")
        for name in dir(flags):
            thing = getattr(flags, name)
            here = name.startswith("DEFINE")
            setattr(stub, name, functools.partial(thing, flag_values=values) if here else thing)
        stub.FLAGS = values
        with monkeypatch.context() as patch:
            patch.setattr(absl, "flags", stub)  # doors share names of flags
            patch.delitem(sys.modules, f"simclr_jax.{door}", raising=False)
            patch.setattr(parallel, "use_compilation_cache", lambda: None)
            patch.setattr(place, "run", lambda *given, **named: calls.append((given, named)))
            module = importlib.import_module(f"simclr_jax.{door}")
            values(["door", *arguments])
            module.main()
        ((given, named),) = calls
        return given, named

    return ask


PROBE = (
    *("--checkpoint=a,b@7", "--data=d", "--data_dir=e", "--split=f", "--eval_split=g"),
    *("--validation_split=h", "--solver=sgd,kmeans", "--tap=z,head1", "--labels=25"),
    *("--knn=7:0.3,9", "--sgd_rates=0.5,2", "--sgd_epochs=3.5", "--sgd_batch_size=17"),
    *("--sgd_augment", "--untrained", "--seed=11", "--cache=i", "--name=j", "--seen"),
    *("--max_bad_fraction=0.25", "--mlp_rates=0.4,0.6", "--mlp_decays=0,0.7", "--mlp_epochs=8.5"),
    *("--mlp_units=19", "--grid"),
)


def test_the_linear_probe(asked):
    (checkpoints, wanted, options), _ = asked("linear_probe", linear_probe, *PROBE)
    assert checkpoints == ["a", "b@7"] and wanted == Wanted("d", "e", "f", "g", "h", True)
    settings = Settings(((7, 0.3), (9, None)), (0.5, 2.0), 3.5, 17, True)
    settings = dataclasses.replace(
        settings,
        mlp_rates=(0.4, 0.6),
        mlp_decays=(0.0, 0.7),
        mlp_epochs=8.5,
        mlp_units=19,
        seed=11,
    )
    assert options == Options(
        solvers=("sgd", "kmeans"),
        taps=("z", "head1"),
        labels="25",
        settings=settings,
        untrained=True,
        cache="i",
        metric="",
        name="j",
        max_bad_fraction=0.25,
        grid=True,
    )


def test_the_linear_probe_without_a_word(asked):
    (checkpoints, wanted, options), _ = asked("linear_probe", linear_probe, "--checkpoint=a")
    assert checkpoints == ["a"] and wanted == Wanted()
    assert options == Options(solvers=("lbfgs", "knn"))  # of the settings all as they come
    assert options.settings == Settings(
        knn=((200, 0.1), (20, None)),
        rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        epochs=None,
        batch_size=None,
        augment=False,
        mlp_rates=(0.01, 0.1),
        mlp_decays=(0.0005, 0.005),
        mlp_epochs=50.0,
        mlp_units=None,
        seed=0,
    )
    assert (options.taps, options.labels, options.cache) == (("h",), "all", "")


def test_transfer(asked):
    arguments = ("--checkpoint=a", "--data_dir=b", "--sets=dtd,pets", "--data=c,d", "--seed=5")
    (checkpoint, data_dir), named = asked(
        "transfer", transfer, *arguments, "--cache=e", "--max_bad_fraction=0.5", "--seen"
    )
    assert (checkpoint, data_dir) == ("a", "b")
    assert named == {
        "sets": ["dtd", "pets"],
        "others": ["c", "d"],
        "cache": "e",
        "seed": 5,
        "weights": "trained",
        "max_bad_fraction": 0.5,
        "seen": True,
    }
    for data, sets in ((), transfer.NAMES), (("--data=c",), []):
        _, named = asked("transfer", transfer, "--checkpoint=a", *data)
        assert tuple(named["sets"]) == tuple(sets) and named["seed"] == 0 and not named["seen"]


def test_embed(asked):
    arguments = [f"--{name}={name}!" for name in ("checkpoint", "out", "data", "data_dir")]
    arguments += [f"--{name}={name}!" for name in ("split", "tap", "cache")]
    ((options,), _) = asked("embed", embed, *arguments)
    assert options == embed.Options(
        *("checkpoint!", "out!", "data!", "data_dir!", "split!", "tap!", "cache!")
    )
    ((options,), _) = asked("embed", embed, "--checkpoint=a", "--out=b")
    assert options == embed.Options("a", "b", "", "", "", "h", "")


def test_search(asked):
    arguments = ("--embeddings=a", "--query=b", "--query=c", "--k=4", "--duplicates=0.9")
    places = ("--out=d", "--images=e", "--checkpoint=f")
    ((options,), _) = asked("search", search, *arguments, *places, "--seed=6")
    assert list(options.query) == ["b", "c"] and options.checkpoint == "f"
    assert (options.embeddings, options.k, options.duplicates) == ("a", 4, 0.9)
    assert (options.out, options.images, options.seed) == ("d", "e", 6)


TUNE = ("--checkpoint=a", "--protocol=finetune")


def test_transfer_by_fine_tuning(asked):
    more = ("--data_dir=b", "--sets=dtd,pets", "--data=c", "--seed=11", "--seen", "--workdir=d")
    lists = ("--finetune_rates=0.1,0.01,0.1", "--finetune_decays=0,1e-5", "--finetune_steps=9")
    (checkpoint, data_dir), said = asked(
        "transfer", transfer_finetune, *TUNE, *more, *lists, "--finetune_batch_size=32"
    )
    assert (checkpoint, data_dir) == ("a", "b")
    assert said == {
        "sets": ["dtd", "pets"],
        "others": ["c"],
        "grid": Grid((0.01, 0.1), (0.0, 1e-5), 9, 32),
        "place": "d",
        "seed": 11,
        "max_bad_fraction": None,
        "seen": True,
    }


def test_by_default_it_is_the_paper_s_grid(asked):
    """Chen et al. (2020), B.8: 7 rates from 1e-4 to 0.1, 7 decays from 1e-6 to 1e-3, and none."""
    _, said = asked("transfer", transfer_finetune, *TUNE)
    grid = said["grid"]
    assert grid == Grid(RATES, DECAYS, 20_000, 256) and len(grid.pairs) == 56
    for values, low in ((grid.rates, 1e-4), (grid.decays[1:], 1e-6)):
        assert values[0] == low and len(values) == 7
        ratios = [b / a for a, b in itertools.pairwise(values)]
        assert ratios == pytest.approx([10**0.5] * 6, rel=1e-3)
    assert grid.decays[0] == 0 and grid.rates[-1] == 0.1 and grid.decays[-1] == 1e-3


@pytest.mark.parametrize(
    "flag, message",
    [
        (("--finetune_rates=0.1,0",), "--finetune_rates has 0: give numbers above 0"),
        (("--finetune_rates=",), "--finetune_rates is empty"),
        (("--finetune_decays=-1",), "--finetune_decays has -1: give numbers 0 or more"),
        (("--finetune_decays=x",), '--finetune_decays has "x", which is no number'),
        (("--cache=x",), "--cache is of --protocol=linear"),
        (("--protocol=linear", "--workdir=x"), "--workdir is of --protocol=finetune"),
        (("--protocol=linear", "--finetune_steps=3"), "--finetune_steps is of --protocol=finetune"),
    ],
)
def test_what_is_not_of_a_protocol_or_no_number_is_refused(asked, flag, message):
    with pytest.raises(UserError) as raised:
        asked("transfer", transfer_finetune, *TUNE, *flag)
    assert str(raised.value).startswith(message)
