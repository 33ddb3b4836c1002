"""Nothing is scored that a run, or one it comes from, has trained on."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from stages.lineage import (
    COUNT,
    FEW,
    archive,
    forget,
    in_folder,
    made,
    numbers,
    of,
    recipe,
    student,
    write_files,
)

from simclr_jax import documents, records
from simclr_jax.data import sources
from simclr_jax.data.sources.together import Together
from simclr_jax.errors import UserError
from simclr_jax.judging import datasets, tuned_runs
from simclr_jax.judging.datasets import Wanted
from simclr_jax.stages import heritage
from simclr_jax.stages.prepare import prepare
from simclr_jax.stages.run import said_beside


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch):
    monkeypatch.setattr(sources, "MOST_WITHOUT_LABELS", FEW)


def test_what_is_scored_was_held_out_by_every_run_of_the_chain(tmp_path):
    """Pretraining without labels holds out 2 of 60, the others by themselves 6, or 15."""
    data = archive(tmp_path / "a.npz", "train")
    first = made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    tuned = made(tmp_path / "tuned", recipe("finetune", data, **of(tmp_path / "pre")))
    fields = {"distill__teacher": str(tmp_path / "tuned"), "data__holdout_fraction": 0.25}
    student = made(tmp_path / "student", recipe("distill", data, **fields))
    more = recipe("pretrain", data, **of(tmp_path / "student", init__parts="encoder"))
    again = made(tmp_path / "again", more)
    trained_on = numbers(first.train)
    for ready, name in ((tuned, "tuned"), (student, "student"), (again, "again")):
        assert len(ready.test) == FEW and not numbers(ready.test) & trained_on
        (note,) = ready.notes
        assert f"{FEW} images are held out in place of" in note and str(tmp_path) in note
        assert f"note      {note}" in ready.about() and note in ready.protocol["scored images"]
        trained_on |= numbers(ready.train)
        opened = datasets.open_data(ready.config, tmp_path / name, Wanted())
        assert numbers(opened.score) == numbers(ready.test)
        assert numbers(opened.fit) == set(range(COUNT)) - numbers(ready.test)
        other = datasets.open_data(ready.config, tmp_path / name, Wanted(str(data)))
        assert numbers(other.score) == numbers(ready.test)


def test_a_run_without_such_sources_holds_out_its_own_share(tmp_path):
    data, other = archive(tmp_path / "a.npz", "train"), archive(tmp_path / "b.npz", "x", first=99)
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    alone = made(tmp_path / "alone", recipe("finetune", data))
    assert len(alone.test) == 6 and not alone.notes
    fields = of(tmp_path / "pre", data__split="x")
    assert len(prepare(recipe("finetune", other, **fields), 1).test) == 6
    scratch = of(tmp_path / "pre", init__parts="none")  # of which the model is taken alone
    assert len(prepare(recipe("finetune", data, **scratch), 1).test) == 6
    wide = prepare(recipe("finetune", data, **of(tmp_path / "pre", eval__seen=True)), 1)
    assert len(wide.test) == 6 and "may have been trained on" in wide.notes[0]


def test_the_list_outlives_the_runs_it_tells_of(tmp_path):
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    made(tmp_path / "tuned", recipe("finetune", data, **of(tmp_path / "pre")))
    shutil.rmtree(tmp_path / "pre")
    taught_by = recipe("distill", data, distill__teacher=str(tmp_path / "tuned"))
    assert len(prepare(taught_by, 1).test) == FEW
    runs = [one.run for one in prepare(taught_by, 1).trained_on]
    assert runs == ["", str(tmp_path / "tuned"), str(tmp_path / "pre")]


def test_the_list_is_in_the_checkpoints_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_WITHOUT_LABELS", COUNT)
    data, fields = archive(tmp_path / "a.npz", "train"), {"data__holdout_fraction": 0.05}
    made(tmp_path / "pre", recipe("pretrain", data, **fields), sealed=True)
    tuned = made(tmp_path / "tuned", recipe("finetune", data, **of(tmp_path / "pre")), sealed=True)
    shutil.rmtree(tmp_path / "pre")
    (tmp_path / "tuned" / "config.json").unlink()
    opened = datasets.open_data(tuned.config, tmp_path / "tuned", Wanted())
    assert numbers(opened.score) == numbers(tuned.test) and len(opened.score) == 3


def test_a_source_of_an_old_run_is_known_by_its_checkpoints(tmp_path):
    data = archive(tmp_path / "a.npz", "train", "more")
    made(tmp_path / "pre", recipe("pretrain", data, data__split="more"), sealed=True)
    made(tmp_path / "tuned", recipe("finetune", data, **of(tmp_path / "pre")))
    forget(tmp_path / "tuned")
    (tmp_path / "pre" / "config.json").unlink()
    fields = {"distill__teacher": str(tmp_path / "tuned"), "data__eval_split": "more"}
    with pytest.raises(UserError, match=r"pre trained on images of more of"):
        prepare(recipe("distill", data, **fields), 1)


def test_images_that_were_moved_are_known_again(tmp_path):
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    moved = data.rename(tmp_path / "b.npz")
    assert len(prepare(recipe("finetune", moved, **of(tmp_path / "pre")), 1).test) == FEW


@pytest.mark.parametrize("gone", [False, True])
def test_of_old_runs_it_is_found_from_their_recipes(tmp_path, gone):
    """One that is gone is taken to have held out what is held out of images without labels."""
    data = archive(tmp_path / "a.npz", "train")
    first = made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    later = recipe("finetune", data, **of(tmp_path / "pre", eval__seen=True))
    assert len(made(tmp_path / "tuned", later).test) == 6  # as such runs did
    for name in ("pre", "tuned"):
        forget(tmp_path / name)
    if gone:
        shutil.rmtree(tmp_path / "pre")
    fields = {"distill__teacher": str(tmp_path / "tuned")}
    ready = prepare(recipe("distill", data, **fields), 1)
    assert len(ready.test) == FEW and not numbers(ready.test) & numbers(first.train)
    assert ("pre, which is gone and" in ready.notes[0]) is gone


@pytest.mark.parametrize("change", [None, "gone", "other names"])
def test_an_old_run_held_out_the_same_whatever_became_of_its_list_of_labels(tmp_path, change):
    data, few = archive(tmp_path / "a.npz", "train"), tmp_path / "few.txt"
    alone = prepare(recipe("finetune", data, data__holdout_fraction=0.05), 1)
    few.write_text("\n".join(alone.train.name(i) for i in range(12)))
    config = recipe("finetune", data, data__holdout_fraction=0.05, labels__use=str(few))
    tuned = made(tmp_path / "tuned", config)
    forget(tmp_path / "tuned")
    if change == "gone":
        few.unlink()
    elif change:
        few.write_text("none of these")
    ready = prepare(student(data, tmp_path / "tuned"), 1)
    assert numbers(ready.test) == numbers(tuned.test) and len(ready.test) == 3
    assert "3 images are held out in place of 6" in ready.notes[0]
    # Of a list that is not there any more, all labels may have been in it.
    assert str(ready.labels) == ("at most 57" if change else "12")
    assert f"{ready.labels} of {tmp_path / 'tuned'}" in ready.labels.line


def test_images_that_an_old_run_cannot_open_any_more_are_refused_at_their_place(tmp_path):
    for split in ("train", "test"):
        write_files(tmp_path / "photos" / split / "a", 10)
        write_files(tmp_path / "photos" / split / "b", 10, 20)
    config = in_folder("finetune", tmp_path / "photos", data__split="test", data__eval_split="")
    old = made(tmp_path / "old", config)
    sources.remember(tmp_path / "old" / "index", old.images, old.test)
    forget(tmp_path / "old")
    (index,) = (tmp_path / "old" / "index").iterdir()
    index.write_bytes(b"no index")
    later = in_folder("distill", tmp_path / "photos", distill__teacher=str(tmp_path / "old"))
    with pytest.raises(UserError, match=r"old trained on images of test of .*\(test of .*photos"):
        prepare(later, 1)
    later.data.split, later.data.eval_split = "test", "held_out"
    with pytest.raises(UserError, match=r"there are other images now \(20 in test of .*photos\)"):
        prepare(later, 1)
    later.data.split = "train"
    assert len(prepare(later, 1).test) == 2


def test_old_runs_that_name_one_another_end(tmp_path):
    data = archive(tmp_path / "a.npz", "train")
    for name in "ab":
        made(tmp_path / name, recipe("pretrain", data))
        forget(tmp_path / name)
        record = documents.read(tmp_path / name / "config.json", dict)
        record["init"]["run"] = str(tmp_path / ("b" if name == "a" else "a"))
        documents.write(tmp_path / name / "config.json", record)
    assert len(prepare(recipe("finetune", data, **of(tmp_path / "a")), 1).test) == FEW


def test_an_old_run_is_resumed_as_it_was(tmp_path):
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    config = recipe("finetune", data, **of(tmp_path / "pre", eval__seen=True))
    made(tmp_path / "tuned", config)
    forget(tmp_path / "tuned")
    before = documents.read(tmp_path / "tuned" / "config.json", dict)
    config.eval.seen = False
    again = prepare(config, 1, before=before)
    assert len(again.test) == 6 and said_beside(again, before) == {"chance": before["chance"]}


def test_a_new_run_is_resumed_as_it_was_without_the_others(tmp_path):
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    config = recipe("finetune", data, **of(tmp_path / "pre"))
    ready = made(tmp_path / "tuned", config)
    shutil.rmtree(tmp_path / "pre")
    before = documents.read(tmp_path / "tuned" / "config.json", dict)
    again = prepare(config, 1, before=before)
    assert again.test.fingerprint() == ready.test.fingerprint() and len(again.test) == FEW
    assert said_beside(again, before)[heritage.KEY] == before[heritage.KEY]


@pytest.mark.parametrize("seen", [False, True])
def test_a_resumed_run_says_of_its_scored_images_what_it_said_at_first(tmp_path, seen):
    """By then the runs that it comes from may be gone, from which the notes were made."""
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    config = recipe("finetune", data, **of(tmp_path / "pre", eval__seen=seen))
    ready = made(tmp_path / "tuned", config)
    shutil.rmtree(tmp_path / "pre")
    before = documents.read(tmp_path / "tuned" / "config.json", dict)
    again = prepare(config, 1, before=before)
    said = "may have been trained on" if seen else f"{FEW} images are held out in place of 6"
    assert said in ready.protocol["scored images"]
    assert again.protocol == ready.protocol and again.about() == ready.about()
    assert said_beside(again, before)[heritage.NOTES] == list(ready.notes)
    with pytest.raises(UserError, match=r"notes in config\.json is damaged"):
        prepare(config, 1, before=before | {heritage.NOTES: 3})


def test_other_images_under_the_same_name_are_refused(tmp_path):
    """Files were added or taken away, so the permutation is another."""
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    archive(data, "train", count=COUNT + 1)
    said = r"pre trained on train of .*60 then, 61 in .* not known, which is to be scored: .*seen"
    for old in (False, True):
        if old:
            forget(tmp_path / "pre")
        with pytest.raises(UserError, match=said if not old else "not known, which is to be"):
            prepare(recipe("finetune", data, **of(tmp_path / "pre")), 1)
    config = records.recipe(documents.read(tmp_path / "pre" / "config.json", dict))
    with pytest.raises(UserError, match=r"not known, .*: name other images by --data .* --seen"):
        datasets.open_data(config, tmp_path / "pre", Wanted())
    seen = datasets.open_data(config, tmp_path / "pre", Wanted(seen=True))
    assert len(seen.score) == 6 and "may have been trained on" in seen.notes[-1]


def test_a_split_of_which_all_was_trained_on_gives_nothing_to_hold_out(tmp_path):
    data = archive(tmp_path / "a.npz", "train", "test")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    fields = of(tmp_path / "pre", data__eval_split="held_out")
    with pytest.raises(UserError, match=r"pre trained on all 60 images of train of"):
        prepare(recipe("finetune", data, **fields), 1)
    assert len(prepare(recipe("finetune", data, **of(tmp_path / "pre")), 1).test) == COUNT


@pytest.mark.parametrize("old", [False, True])
def test_a_split_that_was_trained_on_is_not_scored(tmp_path, old):
    data = archive(tmp_path / "a.npz", "train", "test", "more")
    made(tmp_path / "pre", recipe("pretrain", data, data__split="more"))
    if old:
        forget(tmp_path / "pre")
    fields = of(tmp_path / "pre", data__eval_split="more")
    with pytest.raises(UserError, match=r"pre trained on images of more .*name other images in"):
        prepare(recipe("finetune", data, **fields), 1)
    config = records.recipe(documents.read(tmp_path / "pre" / "config.json", dict))
    with pytest.raises(UserError, match=r"trained on images of more .*--eval_split"):
        datasets.open_data(config, tmp_path / "pre", Wanted(str(data), eval_split="more"))
    assert len(prepare(recipe("finetune", data, **of(tmp_path / "pre")), 1).test) == COUNT


def test_a_copy_of_what_was_trained_on_is_not_scored_either(tmp_path):
    data = archive(tmp_path / "a.npz", "train", "test")
    made(tmp_path / "pre", recipe("pretrain", data, data__labels=False))
    arrays = dict(np.load(data))
    copy = {f"{new}_{kind}": arrays[f"{old}_{kind}"] for kind in ("images", "labels")
            for new, old in (("train", "test"), ("test", "train"))}  # fmt: skip
    np.savez(tmp_path / "copy.npz", **copy)
    with pytest.raises(UserError, match=r"pre trained on images of test of .*copy.npz"):
        prepare(recipe("finetune", tmp_path / "copy.npz", **of(tmp_path / "pre")), 1)


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_run_that_learned_from_two_splits_has_seen_both(tmp_path, kind):
    """As the final run of a sweep, which validation images teach too."""
    data = archive(tmp_path / "a.npz", "train", "val", "test")
    if kind == "folder":
        data = tmp_path / "photos"
        for place, split in enumerate(("train", "val", "test")):
            for name in "ab":
                write_files(data / split / name, COUNT // 2, first=place * COUNT, side=8 + place)
    config = recipe("finetune", data, data__source=kind)
    found = sources.find(config.data)
    both = Together((found["train"](), found["val"]()), splits=("train", "val"))
    opener = tuned_runs.opener(both, found["test"]())
    ready = made(tmp_path / "tuned", config, open_all=opener)
    judged, taught_by = ready.config, {"data__source": kind}
    for split in ("val", "train"):
        wanted = Wanted(str(data), split="test", eval_split=split)
        with pytest.raises(UserError, match=rf"tuned trained on images of {split} of .*--seen"):
            datasets.open_data(judged, tmp_path / "tuned", wanted)
        allowed = dataclasses.replace(wanted, seen=True)
        seen = datasets.open_data(judged, tmp_path / "tuned", allowed)
        assert f"tuned trained on images of {split} of" in seen.notes[-1]
    with pytest.raises(UserError, match=r"tuned trained on images of val of .*eval_split"):
        prepare(student(data, tmp_path / "tuned", data__eval_split="val", **taught_by), 1)
    later = prepare(student(data, tmp_path / "tuned", **taught_by), 1)
    assert len(later.test) == COUNT and later.labels.total == 2 * COUNT
    runs = [one.run for one in later.trained_on]
    assert runs == ["", *[str(tmp_path / "tuned")] * 2]
    before = documents.read(tmp_path / "tuned" / "config.json", dict)
    again = prepare(config, 1, before=before, open_all=opener)
    assert str(again.labels) == str(ready.labels) == str(2 * COUNT)


def test_directories_that_lie_in_one_another_have_images_in_common(tmp_path):
    """As when some of the photographs of an archive are sorted into classes later."""
    photos = tmp_path / "photos"
    for name in "ab":
        write_files(photos / "sorted" / "train" / name, 6, ord(name) % 2 * 6)
        write_files(photos / "sorted" / "test" / name, 6, 20 + ord(name) % 2 * 6)
    write_files(photos / "loose", 10, 40)
    made(tmp_path / "pre", in_folder("pretrain", photos))
    later = in_folder("finetune", photos / "sorted", **of(tmp_path / "pre"))
    with pytest.raises(UserError, match=r"pre trained on images of test of .*sorted"):
        prepare(later, 1)
    (tmp_path / "link").symlink_to(photos / "sorted")
    with pytest.raises(UserError, match=r"pre trained on images of test of .*link"):
        prepare(in_folder("finetune", tmp_path / "link", **of(tmp_path / "pre")), 1)
    (photos / "sorted").rename(tmp_path / "sorted")
    prepare(in_folder("finetune", tmp_path / "sorted", **of(tmp_path / "pre")), 1)


@pytest.mark.parametrize("old", [False, True])
def test_files_of_the_same_names_elsewhere_may_be_others(tmp_path, old):
    """As where each split numbers its files from 0; a copy has the same sizes."""
    photos = tmp_path / "photos"
    for split, side in (("train", 10), ("test", 12)):
        for name in "ab":
            write_files(photos / split / name, 8, side=side)
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / "test").rename(tmp_path / "copy" / "val")
    (tmp_path / "copy" / "train").rename(tmp_path / "copy" / "test")
    made(tmp_path / "pre", in_folder("pretrain", photos))
    if old:  # of whose files nothing but the names is known
        record = documents.read(tmp_path / "pre" / "config.json", dict)
        record[heritage.KEY][0].pop("sizes", None)
        documents.write(tmp_path / "pre" / "config.json", record)
        with pytest.raises(UserError, match=r"pre trained on images of test of .*photos"):
            prepare(in_folder("finetune", photos, **of(tmp_path / "pre")), 1)
    else:
        ready = prepare(in_folder("finetune", photos, **of(tmp_path / "pre")), 1)
        assert len(ready.test) == 16 and not ready.notes
    fields = of(tmp_path / "pre", data__split="val")
    with pytest.raises(UserError, match=r"pre trained on images of test of .*copy"):
        prepare(in_folder("finetune", tmp_path / "copy", **fields), 1)


def test_a_file_that_was_repaired_leaves_the_others_held_out(tmp_path):
    photos = tmp_path / "photos"
    for name in "ab":
        write_files(photos / name, 30)
    first = made(tmp_path / "pre", in_folder("pretrain", photos, data__labels=False))
    write_files(photos / "a", 1, side=30)
    ready = prepare(in_folder("finetune", photos, **of(tmp_path / "pre")), 1)
    assert ready.test.paths == first.test.paths and len(ready.test) == FEW


@pytest.mark.parametrize(
    "damage", [{"run": 3}, {"held_out": -5}, {"held_out": 0}, {"images": -1}, {"labels": {}}]
)
def test_a_damaged_list_is_one_line(tmp_path, damage):
    data = archive(tmp_path / "a.npz", "train")
    made(tmp_path / "pre", recipe("pretrain", data))
    record = documents.read(tmp_path / "pre" / "config.json", dict)
    record[heritage.KEY][0] |= damage
    documents.write(tmp_path / "pre" / "config.json", record)
    with pytest.raises(UserError, match=r"trained_on in .*pre/config.json is damaged \(.*restore"):
        prepare(recipe("finetune", data, **of(tmp_path / "pre")), 1)
