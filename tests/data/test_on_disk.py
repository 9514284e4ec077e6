"""Wherever the rows lie, the bits are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import samestep
from jobs import on_disk
from jobs.on_disk import STEPS
from samestep.job.report import Report
from samestep.launch.run.launcher import Launcher

JOB = f"{Path(on_disk.__file__)}:job"
FORMS = ["mapped", "files", "parquet"]

Train = Callable[..., Report]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("data")
    on_disk.write(found)
    return found


@pytest.fixture(scope="module")
def train(launcher: Launcher, folder: Path) -> Train:
    """`train("files", shuffle=False, workers=3)`; the same training is done once."""

    def run(
        form: str, shuffle: bool = True, loaders: int = 0, held_out: str = "", place: Path = folder, **options: Any
    ) -> Report:
        settings = {"form": form, "folder": str(place), "shuffle": shuffle, "loaders": loaders, "held_out": held_out}
        return samestep.train(JOB, settings=settings, launcher=launcher, **options)

    return run


@pytest.fixture(scope="module")
def reference(train: Train) -> dict[bool, Report]:
    """In memory, on one worker: with and without shuffling."""
    return {shuffle: train("memory", shuffle=shuffle, workers=1) for shuffle in (True, False)}


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_rows_on_disk_train_as_rows_in_memory(
    form: str, workers: int, loaders: int, train: Train, reference: dict[bool, Report]
) -> None:
    report = train(form, workers=workers, loaders=loaders)
    assert (report.losses, report.digest) == (reference[True].losses, reference[True].digest)


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_ordered_data_set_trains_as_rows_in_their_order(
    workers: int, loaders: int, train: Train, reference: dict[bool, Report]
) -> None:
    report = train("ordered", shuffle=False, workers=workers, loaders=loaders)
    assert (report.losses, report.digest) == (reference[False].losses, reference[False].digest)
    assert report.digest != reference[True].digest


@pytest.mark.parametrize("transport", ["processes", "threads"])
def test_what_samples_draw_does_not_depend_on_who_passes_over_them(transport: str, train: Train) -> None:
    alone = train("rotated", shuffle=False, workers=1)
    for assign, loaders in [((3, 0, 5), 0), ((1, 7), 1), ((2, 2, 2, 2), 0)]:
        found = train("rotated", shuffle=False, assign=assign, loaders=loaders, transport=transport)
        assert found.digest == alone.digest


@pytest.mark.parametrize("stop", [3, 4, 5])  # in the midst of an epoch, at its end, after it
@pytest.mark.parametrize("form", ["files", "parquet", "rotated"])
def test_training_goes_on_at_the_exact_row(form: str, stop: int, train: Train, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shuffle": form != "rotated", "checkpoint": tmp_path}
    train(form, workers=2, steps=stop, **options)
    rest = train(form, workers=3, loaders=1, resume=True, **options)
    assert len(rest.losses) == STEPS - stop
    assert rest.digest == train(form, shuffle=form != "rotated", workers=1).digest


@pytest.mark.parametrize("form", [*FORMS, "ordered"])
def test_held_out_rows_may_lie_anywhere_too(form: str, train: Train) -> None:
    wanted = train("memory", held_out="memory", workers=1)
    for loaders in (0, 1):
        found = train("memory", held_out=form, loaders=loaders, workers=3)
        assert (found.metrics, found.digest) == (wanted.metrics, wanted.digest)


@pytest.mark.parametrize("form", ["files", "ordered"])
def test_a_cut_network_is_recorded_with_rows_from_disk(form: str, train: Train, reference: dict[bool, Report]) -> None:
    assert train(form, shuffle=False, workers=2, plan="pipeline").digest == reference[False].digest


def test_shuffling_an_order_of_its_own_is_refused(train: Train) -> None:
    with pytest.raises(samestep.Refused, match=r"Job\.data is Ordered.*shuffle=False.*seeded by the epoch"):
        train("ordered", workers=1)


@pytest.mark.parametrize("loaders", [0, 1])
def test_samples_that_end_early_are_named_by_row_and_epoch(loaders: int, train: Train) -> None:
    with pytest.raises(samestep.TrainingFailed) as caught:
        train("too short", shuffle=False, loaders=loaders, workers=1)
    assert "Job.data ended before row 77 of epoch 1: make(1, 0) gave 77 samples" in str(caught.value)
    assert "num_rows=100 promises 100" in str(caught.value)


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_file_that_goes_away_is_named(loaders: int, train: Train, tmp_path: Path) -> None:
    """Only headers are read while the job is made; its first rows come after the file is gone."""
    on_disk.write(tmp_path)
    (tmp_path / "goes_away.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(on_disk.__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "from jobs import on_disk\n"
        "def job(form, folder, shuffle, loaders, held_out):\n"
        "    made = on_disk.job(form, folder, shuffle, loaders, held_out)\n"
        "    (Path(folder) / 'x' / '03.npy').unlink()\n"
        "    return made\n"
    )
    settings = {"form": "files", "folder": str(tmp_path), "shuffle": True, "loaders": loaders, "held_out": ""}
    with pytest.raises(samestep.TrainingFailed, match=r"x/03\.npy was whole when the job was made"):
        samestep.train(f"{tmp_path}/goes_away.py:job", settings=settings, workers=1)
