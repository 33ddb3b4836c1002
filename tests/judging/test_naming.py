"""No result takes the place of another: names tell apart what was judged, and how."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from stages.written import write_images, write_run

from simclr_jax import documents
from simclr_jax.data.sources import folder, stamp
from simclr_jax.errors import UserError
from simclr_jax.judging import feature_bank, linear_probe, naming, results, transfer
from simclr_jax.judging.datasets import Data, Wanted
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.solvers import Settings
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

KNN = Options(("knn",), settings=Settings(knn=((3, None),)))


@pytest.mark.parametrize(
    "words, given, expected",
    [
        (("", "lbfgs", "h"), {}, "lbfgs-h"),
        (("photos", "knn3", "z"), {"tail": "step4"}, "photos-knn3-z-step4"),
        (("lbfgs", "h"), {"seed": 2}, "lbfgs-h-seed2"),
        (("lbfgs", "h"), {"labels": "10%", "seed": 2}, "lbfgs-h-10pct_labels-seed2"),
        (("lbfgs", "h"), {"labels": "10%"}, "lbfgs-h-10pct_labels-seed0"),
    ],
)
def test_defaults_leave_names_plain(words, given, expected):
    assert naming.name(*words, **given) == expected


def test_what_words_leave_out_is_in_a_tag(tmp_path):
    lists = [tmp_path / place / "few.txt" for place in "ab"]
    for path in lists:
        path.parent.mkdir()
        path.write_text(f"{path.parent.name}\n")
    other = [{"split": "val"}, {"eval_split": "val"}, {"rates": (0.1,)}, {"rates": (0.1, 1.0)}]
    found = [naming.name("sgd", "h", beyond=beyond) for beyond in other]
    found += [naming.name("sgd", "h", labels=str(path)) for path in lists]
    assert len({*found}) == len(found) and all(results.NAME.fullmatch(name) for name in found)
    assert all(re.search("-[0-9a-f]{6}$", name) for name in found)
    assert naming.name("sgd", "h", beyond={"split": "val"}) == found[0]


def test_settings_that_a_name_does_not_say_are_those_of_its_solver():
    settings = Settings(rates=(0.5,), epochs=3, batch_size=8, knn=((3, None),), seed=4)
    assert settings.unsaid("sgd") == {"rates": (0.5,), "epochs": 3, "batch_size": 8}
    assert all(settings.unsaid(solver) == {} for solver in ("lbfgs", "knn", "kmeans"))
    assert Settings(epochs=None).unsaid("sgd") == {}


def archive(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_images(path, **fields)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("named")


@pytest.fixture(scope="module")
def run(root):
    own = archive(root / "own.npz")
    return write_run(root / "run", data__source="memory", data__path=str(own))


def judge(run, options=KNN, checkpoint="", **wanted):
    """Judge, and return the names of results that are there now, and what was said."""
    said = []
    linear_probe.run([checkpoint or str(run)], Wanted(**wanted), options, said.append)
    return {path.stem for path in results.paths(run)}, "\n".join(said)


def test_data_of_one_name_keep_results_of_their_own(run, root):
    paths = [archive(root / place / "data.npz") for place in ("one", "other")]
    arrays = dict(np.load(paths[1]))
    np.savez(paths[1], **arrays | {"test_images": 255 - arrays["test_images"]})
    before, _ = judge(run)
    names = []
    for path in paths:
        after, _ = judge(run, data=str(path))
        names.append(after - before)
        before = after
    assert [len(new) for new in names] == [1, 1]
    (one,), (other,) = names
    assert one != other and all(name.startswith("data-knn3-h-") for name in (one, other))
    told = [results.read(run / "results" / f"{name}.json")["data"] for name in (one, other)]
    assert [data["name"] for data in told] == [str(path) for path in paths]
    # The same again, by whatever spelling, is the same result.
    assert judge(run, data=str(root / "other" / ".." / "one" / "data.npz"))[0] == before
    content = dict(np.load(paths[0]))
    np.savez(paths[0], **content | {"test_images": 255 - content["test_images"]})
    assert len(judge(run, data=str(paths[0]))[0] - before) == 1  # what lies there has changed


def test_other_splits_and_settings_have_names_of_their_own(run):
    names = [judge(run)[0]]
    for options, wanted in (
        (KNN, {"split": "test", "eval_split": "train", "seen": True}),
        (dataclasses.replace(KNN, settings=Settings(knn=((2, None), (3, 0.5)))), {}),
        (dataclasses.replace(KNN, settings=Settings(knn=((3, None),), seed=1)), {}),
        (dataclasses.replace(KNN, labels="2"), {}),
        (dataclasses.replace(KNN, labels="3"), {}),
        (dataclasses.replace(KNN, taps=("z",)), {}),
        (dataclasses.replace(KNN, name="mine"), {}),
    ):
        names.append(judge(run, options, **wanted)[0])
        assert names[-1] > names[-2]


def test_an_older_result_of_another_checkpoint_is_kept(root, run):
    """The newest checkpoint has no word in the name, so another training may come to its place."""
    copy = shutil.copytree(run, root / "trained on")
    shutil.rmtree(copy / "results", ignore_errors=True)
    judge(copy)
    first = results.read(copy / "results/knn3-h.json")
    config = saved.read(str(copy)).config
    write_run(copy, 9, data__source="memory", data__path=config.data.path, seed=5)
    names, said = judge(copy)
    assert names == {"knn3-h", "knn3-h-step7"} and "it is kept as knn3-h-step7" in said
    kept = results.read(copy / "results/knn3-h-step7.json")
    assert {key: kept[key] for key in first} == {**first, "name": "knn3-h-step7"}
    assert results.read(copy / "results/knn3-h.json")["checkpoint"]["step"] == 9
    assert (copy / "results/knn3-h-step7.npz").exists()
    assert judge(copy)[1].count("is kept as") == 0  # the same again
    # The step by its name is a name; and weights of the same step are told apart as well.
    assert judge(copy, checkpoint=f"{copy}@9")[0] == names | {"knn3-h-step9"}
    shutil.rmtree(copy / "checkpoints" / "9")
    shutil.rmtree(copy / "checkpoints" / "7")
    write_run(copy, 9, data__source="memory", data__path=config.data.path, seed=6)
    more = judge(copy)[0] - names - {"knn3-h-step9"}
    assert len(more) == 1 and re.fullmatch("knn3-h-[0-9a-f]{6}", *more)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_older_result_takes_the_place_of_no_other(root, damaged):
    """Of RUN@7, on other images, which has the name that the older one of RUN would be kept by."""
    place = root / f"moved {damaged}"
    own = archive(place / "own.npz")
    copy = write_run(place / "run", data__source="memory", data__path=str(own))
    judge(copy)
    whole = dict(np.load(own))
    np.savez(own, **whole | {"test_images": 255 - whole["test_images"]})
    assert judge(copy, checkpoint=f"{copy}@7")[0] == {"knn3-h", "knn3-h-step7"}
    named = copy / "results/knn3-h-step7.json"
    if damaged:
        named.write_text(named.read_text()[:-9])
    before = [(copy / f"results/knn3-h-step7.{kind}").read_bytes() for kind in ("json", "npz")]
    write_run(copy, 9, data__source="memory", data__path=str(own), seed=5)
    names, said = judge(copy)
    (kept,) = names - {"knn3-h", "knn3-h-step7"}
    assert re.fullmatch("knn3-h-[0-9a-f]{6}", kept) and f"it is kept as {kept}" in said
    after = [(copy / f"results/knn3-h-step7.{kind}").read_bytes() for kind in ("json", "npz")]
    assert after == before


def test_an_older_result_that_cannot_be_read_now_is_not_written_over(tmp_path, monkeypatch):
    """A disk that does not answer, or too many open files, are no fault of the result."""
    result = {"name": "knn3-h", "scores": {}, "protocol": {}}
    results.write(tmp_path, result, {})

    def fails(path, *_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), os.fspath(path))

    monkeypatch.setattr(documents, "check_kind", fails)
    with pytest.raises(UserError, match="ulimit -n"):
        list(naming.set_aside(tmp_path, {**result, "checkpoint": {"step": 1}}))


def test_a_damaged_result_of_the_name_is_no_reason_to_stop(run, tmp_path):
    judge(run)
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "knn3-h.json"
    result = results.read(run / "results" / "knn3-h.json")
    assert list(naming.set_aside(tmp_path, result)) == []
    for name in ("knn3-h.json.damaged", "knn3-h.json.damaged-2"):
        path.write_text(name)
        (said,) = naming.set_aside(tmp_path, result)
        assert f"is kept as {name}, for {path} cannot be used" in said
        assert (path.parent / name).read_text() == name
    path.unlink()
    path.mkdir()  # then it cannot be written over, which `results.write` says
    assert list(naming.set_aside(tmp_path, result)) == []


@pytest.mark.slow
def test_transfer_tells_data_of_one_name_apart(run, root):
    paths = [str(archive(root / place / "same.npz", side=9)) for place in ("c", "d")]
    said = []
    transfer.run(str(run), sets=(), others=paths, cache="none", say=said.append)
    written = [path.stem for path in results.paths(run) if path.stem.startswith("transfer-same-")]
    assert len(written) == 2
    transfer.run(f"{run}@7", sets=(), others=paths[:1], cache="none", say=said.append)
    written = {path.stem for path in results.paths(run) if path.stem.startswith("transfer-same-")}
    assert len(written) == 3 and sum(name.endswith("-step7") for name in written) == 1


def test_features_of_files_that_only_look_alike_are_their_own(run, root):
    """Names, sizes and times of two directories may agree, as archives unpack them."""
    for place, level in (("e", 10), ("f", 200)):
        for i in range(4):
            path = root / place / "data" / "ab"[i % 2] / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (level + i, 0, 0)).save(path)
            os.utime(path, (100, 100))
    encoder, cache = Encoder.of(saved.read(str(run))), root / "cache"
    fields = {"name": "", "split": "train", "eval_split": "test", "labels": True}
    fields |= {"layout": "auto", "max_megapixels": 128.0, "white_level": "full"}
    opened = [
        folder.splits(ConfigDict({**fields, "path": str(root / place / "data")}))["train"]()
        for place in "ef"
    ]
    assert stamp(opened[0]) == stamp(opened[1])
    assert opened[0].fingerprint() == opened[1].fingerprint()
    found = [feature_bank.extract(encoder, one, ("pixels",), cache)["pixels"].x for one in opened]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(found, 2))


def test_a_name_may_not_be_a_place(run):
    with pytest.raises(UserError, match=r'--name is "\.\./x"'):
        judge(run, dataclasses.replace(KNN, name="../x"))


def test_a_run_in_no_other_words_is_its_own_data(run):
    data = Data("d", "", {}, None, None, None)
    assert naming.of_data(Wanted(), data) == {}
