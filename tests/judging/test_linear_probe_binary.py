"""The linear-probe binary as its users meet it: what it measures, writes, keeps and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from stages.written import write_images, write_run

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.judging import linear_probe, results
from simclr_jax.judging.datasets import Wanted
from simclr_jax.judging.linear_probe import Options
from simclr_jax.judging.solvers import SOLVERS, Settings
from simclr_jax.stages import labels
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved

SETTINGS = Settings(
    *(((10, 0.1), (3, None)), (0.1, 1.0), 3, 16), mlp_rates=(0.1,), mlp_epochs=2, mlp_units=8
)
LEARNED = tuple(solver for solver in SOLVERS if solver != "classifier")
EVERY = Options(solvers=LEARNED, taps=("h", "z"), settings=SETTINGS)
WIDTH = 32  # of h, and here of z as well: so the programs that judge are compiled once for both


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def archive(root):
    write_images(root / "images.npz")
    return str(root / "images.npz")


@pytest.fixture(scope="module")
def run(root, archive):
    fields = {"data__source": "memory", "data__path": archive, "head__dim": WIDTH}
    return write_run(root / "run", **fields)


def read_all(run):
    return [results.read(path) for path in results.paths(run)]


def words(name):
    return re.sub("-[0-9a-f]{6}$", "", name)


def by_words(run):
    """Return results by the words of their names, which here tell them apart without the tag."""
    return {words(one["name"]): one for one in read_all(run)}


def probe(run, data="", options=EVERY, **wanted):
    said = []
    linear_probe.run([str(run)], Wanted(data, **wanted), options, said.append)
    return said


@pytest.fixture(scope="module")
def judged(run):
    """Every solver on two taps of the run's own data, and what lay in the run before."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return before, probe(run), {one["name"]: one for one in read_all(run)}


def test_the_recipe_of_the_run_is_left_alone(run, tmp_path, monkeypatch):
    """What the door is told for this evaluation is not what the run was made with."""
    run = shutil.copytree(run, tmp_path / "run")
    before, known = saved.read(str(run)).config.to_dict(), Encoder.of(saved.read(str(run)))
    monkeypatch.setattr(Encoder, "of", lambda *_: known)
    options = Options(
        solvers=("knn",), max_bad_fraction=0.5, name="tolerant", settings=SETTINGS, cache="none"
    )
    probe(run, options=options)
    assert known.config.to_dict() == before == saved.read(str(run)).config.to_dict()


def test_no_solver_touches_a_weight(run, judged):
    """Neither on disk nor in memory: a probe that trains its backbone is no linear probe."""
    before, _, _ = judged
    assert before == {path: path.read_bytes() for path in before}
    encoder = Encoder.of(saved.read(str(run)))
    fresh = Encoder.of(saved.read(str(run))).fingerprint
    data = linear_probe.datasets.open_data(encoder.config, run, Wanted())
    augmented = Options(("sgd",), settings=Settings(rates=(0.1,), epochs=1, augment=True))
    for options in (dataclasses.replace(EVERY, taps=("h",)), augmented):
        tasks = linear_probe.make_tasks(encoder, data, options, None, print)
        for one in linear_probe.judge(encoder, data, tasks, options):
            del encoder.__dict__["fingerprint"]  # computed from the weights as they are now
            assert encoder.fingerprint == fresh, one.result["name"]


def test_results_say_what_was_measured(run, judged):
    _, said, found = judged
    solvers = ("lbfgs", "sgd", "mlp", "knn10-0.1", "knn3", "kmeans", "retrieval")
    assert {words(name) for name in found} == {
        f"{solver}-{tap}" for solver in solvers for tap in ("h", "z")
    }
    for one in found.values():
        assert any(line.count(one["variant"]) for line in said)
        assert one["checkpoint"]["step"] == 7 and one["checkpoint"]["run"] == f"{run}@7"
        assert one["data"]["test"]["images"] == 24 and "validation" not in one["data"]
        learns = one["solver"] in ("lbfgs", "sgd", "mlp", "knn")
        assert ("fit" in one["data"]) == learns and (
            one["protocol"]["labels used"] != "none"
        ) == learns
        assert one["versions"]["jax"] and one["protocol"]["preprocessing"]["size"] == 8
        for score in one["scores"].values():
            assert score.get("low", 0) <= score["value"] <= score.get("high", 1)
    assert found["lbfgs-h"]["protocol"]["chosen"]["penalty"] > 0
    arrays = results.read_arrays(run, {"name": "lbfgs-h"})
    right = arrays["labels"] == arrays["predictions"]
    assert right.mean() == found["lbfgs-h"]["scores"]["top-1"]["value"]


def test_neighbours_are_those_of_scikit_learn(run, judged, archive):
    arrays, encoder = np.load(archive), Encoder.of(saved.read(str(run)))
    train, test = (encoder(arrays[f"{split}_images"]) for split in ("train", "test"))
    peer = KNeighborsClassifier(3, metric="cosine", algorithm="brute")
    expected = peer.fit(train, arrays["train_labels"]).score(test, arrays["test_labels"])
    assert judged[2]["knn3-h"]["scores"]["top-1"]["value"] == expected


def test_the_classifier_in_the_checkpoint_is_scored_as_it_is(run, archive):
    options = Options(("classifier",), settings=SETTINGS)
    probe(run, options=options)
    found = {one["name"]: one for one in read_all(run)}["classifier-h"]
    arrays, saved_run = np.load(archive), saved.read(str(run))
    h = Encoder.of(saved_run)(arrays["test_images"])
    dense = saved_run.variables("probe")["params"]["dense"]
    right = np.argmax(h @ dense["kernel"] + dense["bias"], axis=1) == arrays["test_labels"]
    assert found["scores"]["top-1"]["value"] == right.mean()
    assert "fit" not in found["data"] and found["protocol"]["labels used"] == "none"
    with pytest.raises(UserError, match="reads h: set --tap=h"):
        probe(run, options=Options(("classifier",), taps=("z",)))


def test_one_device_and_eight_give_the_same_numbers(run, judged):
    read = saved.read(str(run))
    data = linear_probe.datasets.open_data(read.config, run, Wanted())
    one = Encoder.of(read, parallel.make_mesh(1))
    tasks = linear_probe.make_tasks(one, data, EVERY, None, print)
    np.testing.assert_array_equal(tasks[0].fit.examples, np.arange(48))
    for scored in linear_probe.judge(one, data, tasks, EVERY):
        assert scored.result["scores"] == judged[2][scored.result["name"]]["scores"]


def test_the_same_command_gives_the_same_files(run, judged):
    before = {path: path.read_bytes() for path in (run / "results").iterdir()}
    said = probe(run, options=dataclasses.replace(EVERY, taps=("h",)))
    assert sum("their features were kept" in line for line in said) == 2
    for path, content in before.items():
        if path.suffix == ".json":
            assert json.loads(path.read_bytes()) == json.loads(content)


def test_fewer_labels_and_the_network_before_training(run, judged):
    options = Options(("knn",), labels="50%", settings=SETTINGS, untrained=True)
    said = probe(run, options=options)
    found = {one["name"]: one for one in read_all(run)}
    half, untrained = (found[f"knn3-h-50pct_labels-seed0{tail}"] for tail in ("", "-untrained"))
    assert half["data"]["fit"]["images"] == untrained["data"]["fit"]["images"] == 24
    assert untrained["checkpoint"]["weights"] != half["checkpoint"]["weights"]
    table = [line for line in "\n".join(said).split("\n") if not line.startswith("note")]
    assert sum(line.startswith("untrained") for line in table) == 2  # two settings


def test_two_runs_are_compared_on_the_same_images(run, archive, root):
    fields = {"data__source": "memory", "data__path": archive, "head__dim": WIDTH}
    other = write_run(root / "other", **fields, seed=1)
    said = []
    options = Options(("knn",), settings=SETTINGS)
    linear_probe.run([str(run), str(other)], Wanted(), options, said.append)
    lines = [line for line in said if "paired permutation test" in line]
    assert len(lines) == 2 and all(f"{other}@7 against {run}@7" in line for line in lines)


def test_several_labels_an_image_are_scored_by_average_precision(run, root):
    write_images(root / "several.npz", several=True)
    probe(run, str(root / "several.npz"), Options(("sgd", "retrieval"), settings=SETTINGS))
    found = {name: one["scores"] for name, one in by_words(run).items()}
    assert set(found["several-sgd-h"]) == {"mAP", "11-point mAP"}
    with pytest.raises(UserError, match="several labels, and --solver=knn needs one"):
        probe(run, str(root / "several.npz"), Options(("knn",)))


def test_a_list_of_names_chooses_the_labels(run, root):
    names = root / "few.txt"
    names.write_bytes(b"\r\n".join(b"image %d" % i for i in range(8)) + b"\r\n")
    probe(run, options=Options(("knn",), labels=str(names), settings=SETTINGS))
    found = by_words(run)
    assert found["knn3-h-few_labels-seed0"]["data"]["fit"]["images"] == 8
    names.write_text("image 3\nimage 99\n")
    with pytest.raises(UserError, match="names 2 images, of which 1 are among those"):
        probe(run, options=Options(("knn",), labels=str(names), settings=SETTINGS))


def test_shares_of_labels_have_names_of_their_own():
    names = [labels.tag(wanted, 0) for wanted in ("0.5%", "0.1%", "1%", "1", "10%")]
    assert len(set(names)) == 5 and labels.tag("all", 0) == ""


def test_results_of_one_command_do_not_replace_each_other(run):
    said = []
    twice = [f"{run}@7", str(run)]
    linear_probe.run(twice, Wanted(), Options(("retrieval",)), said.append)
    assert {"retrieval-h-step7", "retrieval-h"} <= {one["name"] for one in read_all(run)}
    said.clear()
    for checkpoints in ([str(run)] * 2, [str(run), f"{run.parent}/./{run.name}"]):
        with pytest.raises(UserError, match=r"--checkpoint names .*run twice: name it once"):
            linear_probe.run(checkpoints, Wanted(), Options(("retrieval",)), said.append)
    assert not said
    probe(run, options=Options(("retrieval",) * 2, taps=("h", "h")))


@pytest.mark.parametrize(
    "second, options, message",
    [
        ("runs/missing", Options(("knn",)), "--checkpoint=runs/missing holds no checkpoints"),
        ("RUN@8", Options(("knn",)), "8"),
        ("RUN@7", Options(("knn",), taps=("h", "head9")), 'tap is "head9"'),
    ],
)
def test_all_checkpoints_are_looked_at_before_one_is_judged(run, second, options, message):
    said, checkpoints = [], [str(run), second.replace("RUN", str(run))]
    with pytest.raises(UserError, match=message):
        linear_probe.run(checkpoints, Wanted(), options, said.append)
    assert not said


def test_what_is_done_is_printed_where_a_later_part_fails(run, archive, root):
    fields = {"data__source": "memory", "data__path": archive, "head__dim": WIDTH}
    full = write_run(root / "full", 7, **fields)
    (full / "results").write_text("no directory")
    said, options = [], Options(("knn",), settings=Settings(knn=((3, None),)), cache="none")
    with pytest.raises(UserError, match=r"results cannot be written to .*full"):
        linear_probe.run([str(run), str(full)], Wanted(), options, said.append)
    assert "".join("".join(said).split()).count("solverknn3,taph") == 1
    assert said[-1] == f"written   {run}/results: settings, scores, predictions"


def test_two_steps_of_a_run_have_one_network_before_training(root, archive):
    fields = {"data__source": "memory", "data__path": archive, "head__dim": WIDTH}
    steps = write_run(write_run(root / "steps", 7, **fields), 9, **fields, seed=1)
    said, options = [], Options(("knn",), settings=Settings(knn=((3, None),)), untrained=True)
    linear_probe.run([f"{steps}@7", f"{steps}@9"], Wanted(), options, said.append)
    names = {"knn3-h-step7", "knn3-h-step9", "knn3-h-untrained"}
    assert {one["name"] for one in read_all(steps)} == names
    lines = [line for line in "\n".join(said).split("\n") if not line.startswith("note")]
    cells = [re.split(" {2,}", line.strip()) for line in lines]
    trained, first = (sum(word in row for row in cells) for word in ("trained", "untrained"))
    assert trained == 2 * first > 0  # in one block of the table, or in several


@pytest.mark.parametrize(
    "several, options, message",
    [
        (True, Options(("lbfgs", "knn")), "several labels, and --solver=knn needs one"),
        (True, Options(("sgd", "kmeans")), "several labels, and --solver=kmeans needs one"),
        (True, Options(("sgd",), settings=Settings(augment=True)), "may have several labels here"),
        (False, Options(("knn", "classifier"), taps=("h", "z")), "reads h: set --tap=h"),
        (False, Options(("knn",), labels="many"), "--labels=many is neither all"),
        (False, Options(("knn",), labels="13"), "class 0 has 12 examples but 13 per class"),
        (False, Options(("knn",), labels="3"), "to learn 4 classes from"),
    ],
)
def test_what_does_not_fit_is_said_before_features_are_computed(
    run, root, several, options, message
):
    arrays = write_images(root / "unfit.npz", several=several)
    if "classes" in message:
        arrays |= {"train_labels": np.where(np.arange(48) % 4, -1, 0)}
        np.savez(root / "unfit.npz", **arrays)
    said = []
    with pytest.raises(UserError, match=message):
        linear_probe.run([str(run)], Wanted(str(root / "unfit.npz")), options, said.append)
    assert not said


def test_the_commonest_class_is_that_of_the_training_images_whoever_is_beside(run, root):
    arrays = write_images(root / "tilted.npz")
    arrays["train_labels"] = np.where(np.arange(48) < 30, 2, arrays["train_labels"])
    arrays["test_labels"] = np.where(np.arange(24) < 15, 1, arrays["test_labels"])
    np.savez(root / "tilted.npz", **arrays)
    levels = []
    for solvers in (("classifier",), ("classifier", "knn")):
        probe(run, str(root / "tilted.npz"), Options(solvers, settings=SETTINGS))
        levels.append(by_words(run)["tilted-classifier-h"]["level"])
    assert levels[0] == levels[1] and levels[0]["of"] == "the commonest class (class 2)"
    want = np.mean(arrays["test_labels"] == 2)
    assert levels[0]["scores"]["top-1"]["value"] == want < 0.2


@pytest.mark.parametrize(
    "harm, options, message",
    [
        (lambda a: {k: v for k, v in a.items() if "labels" not in k}, EVERY, "have no labels"),
        (lambda a: {k: v[:3] if "train" in k else v for k, v in a.items()}, EVERY,
         "has 3 labelled images to learn 4 classes from"),
        (lambda a: a, Options(labels="13"), "class 0 has 12 examples but 13 per class"),
        (lambda a: a, Options(labels="many"), "--labels=many is neither all, a share"),
        (lambda a: a, Options(labels="0%"), "share of labels is 0"),
        (lambda a: a, Options(("svm",)), 'solver is "svm"'),
        (lambda a: a, Options(taps=("head9",)), 'tap is "head9"'),
        (lambda a: a, Options(name="a/b"), '--name is "a/b"'),
    ],
)  # fmt: skip
def test_what_a_user_can_get_wrong_is_one_line(run, root, harm, options, message):
    arrays = write_images(root / "harmed.npz")
    np.savez(root / "harmed.npz", **harm(arrays))
    with pytest.raises(UserError, match=message) as raised:
        probe(run, str(root / "harmed.npz"), options)
    assert "\n" not in str(raised.value)


def test_a_class_that_was_never_seen_is_named_and_counts_as_error(run, root):
    arrays = write_images(root / "unseen.npz")
    seen = arrays["train_labels"] != 3
    arrays |= {k: v[seen] for k, v in arrays.items() if k.startswith("train")}
    np.savez(root / "unseen.npz", **arrays)
    said = probe(run, str(root / "unseen.npz"), Options(("knn",), settings=SETTINGS))
    assert any("1 class(es) occur among the images scored on only, such as 3" in x for x in said)
    found = {name: one["scores"] for name, one in by_words(run).items()}
    assert found["unseen-knn3-h"]["top-1"]["value"] <= 0.75


def test_validation_images_without_labels_choose_nothing(run, root):
    arrays = write_images(root / "half.npz")
    np.savez(root / "half.npz", **arrays, val_images=arrays["test_images"])
    probe(run, str(root / "half.npz"), Options(("lbfgs",), settings=SETTINGS))
    found = by_words(run)["half-lbfgs-h"]
    assert "validation" not in found["data"]
    assert found["protocol"]["chosen on"].endswith("of the training images")
    with pytest.raises(UserError, match='--validation_split is "val", whose images have no labels'):
        probe(run, str(root / "half.npz"), validation_split="val")


@pytest.mark.parametrize(
    "options, used",
    [
        (Options(("knn",), settings=SETTINGS), False),
        (Options(("lbfgs",), labels="4"), False),
        (Options(("lbfgs",)), True),
    ],
)
def test_a_validation_split_that_is_not_used_is_said(run, root, options, used):
    arrays = write_images(root / "chosen.npz")
    val = {"val_images": arrays["test_images"][:9], "val_labels": arrays["test_labels"][:9]}
    np.savez(root / "chosen.npz", **arrays, **val)
    for named in ("", "val"):
        said = "\n".join(probe(run, str(root / "chosen.npz"), options, validation_split=named))
        assert ("9 to choose on (val)" in said) == used
        assert ("note      val (9 images) is not used" in said) == (not used)


def test_gray_images_and_other_sizes_are_taken_and_said_so(run, root):
    write_images(root / "gray.npz", side=15, channels=1)
    crops = Settings(knn=((3, None),), rates=(0.1,), epochs=1, batch_size=16, augment=True)
    said = probe(run, str(root / "gray.npz"), Options(("knn", "sgd"), settings=crops))
    assert any("1 channel(s), the encoder takes 3: they are repeated" in line for line in said)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"data": "nowhere"}, "--data=nowhere is no directory"),
        ({"eval_split": "tset"}, 'eval_split is "tset" \\(did you mean "test"'),
        ({"split": "test"}, "would be learned from and scored on"),
        ({"validation_split": "test"}, "--validation_split is"),
        ({"data_dir": "x"}, "--data_dir=x belongs to --data=tfds:NAME"),
    ],
)
def test_splits_that_do_not_fit_are_refused(run, wanted, message):
    with pytest.raises(UserError, match=message):
        probe(run, **wanted)


@pytest.mark.parametrize(
    "change, message",
    [({"epochs": -3.0}, "--sgd_epochs is -3"), ({"epochs": 0.0}, "--sgd_epochs is 0"),
     ({"epochs": math.nan}, "--sgd_epochs is nan"), ({"epochs": math.inf}, "--sgd_epochs is inf"),
     ({"batch_size": 0}, "--sgd_batch_size is 0"), ({"seed": -1}, "--seed is -1"),
     ({"rates": (1.0, math.nan)}, "--sgd_rates has nan"), ({"rates": (0.0,)}, "--sgd_rates has 0"),
     ({"knn": ((0, None),)}, "--knn has k = 0"), ({"knn": ((5, math.nan),)}, "temperature nan"),
     ({"knn": ((5, 0.0),)}, "temperature 0"), ({"knn": ((5, math.inf),)}, "temperature inf")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Settings(**change)


@pytest.mark.parametrize("text", ["x", "0", "10:y", "-3", "5.5", "5:nan", "5:inf",
                                  "5:-1", "5:0", "9" * 10, "9" * 5000])  # fmt: skip
def test_neighbours_must_be_a_number(text):
    with pytest.raises(UserError, match="--knn has"):
        linear_probe.neighbours(text)
