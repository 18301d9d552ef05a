"""What TensorBoard reads of the event files: of whole runs, of resumed ones, and what its HPARAMS tab shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aam.config import OptimConfig
from aam.errors import Interrupted
from aam.training.callbacks import Checkpoints
from aam.training.checkpoint import load_checkpoint
from aam.training.meter import Meter
from aam.training.optimizers import build_optimizer
from aam.training.tasks import Evaluation
from aam.training.tensorboard import StepCurves, TensorBoard, learning_rates
from aam.training.trainer import Callback, Step, Trainer
from tests.conftest import TinyStudy
from tests.training.tiny import build_task, build_trainer

PARAMETERS = {"lr": 0.001, "batch_size": 2, "classifier": False, "loss": "huber", "rarefy_depth": "none"}


def pictures(evaluation: Evaluation) -> dict[str, Figure]:
    return {"predictions": Figure(figsize=(1, 1))}


def board(folder: Path, *, every_seconds: float = 0, histograms: bool = False) -> list[Callback]:
    meter = Meter(every_seconds=0)
    return [
        meter,
        StepCurves(folder / "steps", meter),
        TensorBoard(folder, pictures, PARAMETERS, ("r2", "unifrac_r2"), histograms, every_seconds),
    ]


def trainer_of(study: TinyStudy, folder: Path, callbacks: Sequence[Callback], epochs: int = 3) -> Trainer:
    return build_trainer(
        study, build_task(study, "regression"), folder, epochs=epochs, scheduled_epochs=3, callbacks=callbacks
    )


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0}).Reload()


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_curves_are_those_of_the_history(equal_study: TinyStudy, tmp_path: Path) -> None:
    trainer = trainer_of(equal_study, tmp_path, board(tmp_path))
    state = trainer.fit()
    trainer.close()
    train, validation = read(tmp_path / "train"), read(tmp_path / "validation")

    def column(rows: list[dict[str, float]], name: str) -> list[tuple[int, float]]:
        return [(i, pytest.approx(row[name])) for i, row in enumerate(rows, 1)]

    for tag in ("loss", "unifrac_loss", "nuc_loss", "target_loss", "count_loss"):
        assert points(train, f"loss/{tag}") == column(state.history, f"train_{tag}")
        assert points(validation, f"loss/{tag}") == column(state.history, f"val_{tag}")
    assert points(validation, "metric/r2") == column(state.history, "val_r2")
    assert points(train, "learning_rate") == column(state.history, "lr")
    assert points(train, "gradient_norm") == column(state.history, "gradient_norm")
    for name in ("seconds", "samples_per_second", "memory_mb"):
        assert points(train, f"machine/{name}") == column(state.measured, name)


def test_curves_by_step(equal_study: TinyStudy, tmp_path: Path) -> None:
    seen: list[tuple[Step, float]] = []

    class Recorder(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            seen.append((step, trainer.learning_rate))

    trainer = trainer_of(equal_study, tmp_path, [*board(tmp_path), Recorder()], epochs=2)
    trainer.fit()
    trainer.close()
    steps = read(tmp_path / "steps")
    assert len(seen) == 6
    for name in seen[0][0].parts:
        assert points(steps, f"step/loss/{name}") == [
            (i, pytest.approx(float(step.parts[name]))) for i, (step, _) in enumerate(seen, 1) if name in step.parts
        ]
    norms = [pytest.approx(float(step.gradient_norm)) for step, _ in seen if step.gradient_norm is not None]
    assert points(steps, "step/gradient_norm") == list(enumerate(norms, 1))
    assert points(steps, "step/learning_rate") == [(i, pytest.approx(lr)) for i, (_, lr) in enumerate(seen, 1)]
    assert all(value > 0 for _, value in points(steps, "step/samples_per_second"))


def test_groups_of_parameters_have_their_learning_rates(equal_study: TinyStudy) -> None:
    model = build_task(equal_study, "regression").model
    assert learning_rates(build_optimizer(model, OptimConfig(lr=0.1))) == {"learning_rate": 0.1}
    rates = learning_rates(build_optimizer(model, OptimConfig(lr=0.1, head_lr=0.5)))
    assert rates["learning_rate"] == 0.1
    assert {name.split("/")[1].split("_")[0]: rate for name, rate in rates.items() if "head" in name} == {"head": 0.5}
    assert all(" " not in name for name in rates) and set(rates.values()) == {0.1, 0.5}


@pytest.mark.parametrize("stop_at", [2, 3, 4, 7])
def test_a_resumed_run_has_the_curves_of_one_that_was_not_stopped(
    stop_at: int, equal_study: TinyStudy, tmp_path: Path
) -> None:
    """Stopped after a step, of an epoch of three; killed two steps after what was saved, so that these come twice."""

    def curves(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
        found = {}
        for run in ("train", "validation", "steps"):
            events = read(folder / run)
            tags = [tag for tag in events.Tags()["scalars"] if "second" not in tag and "memory" not in tag]
            found[run] = {tag: points(events, tag) for tag in tags}
        return found

    whole = trainer_of(equal_study, tmp_path, board(tmp_path / "whole"))
    torch.manual_seed(0)
    whole.fit()
    whole.close()

    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            if trainer.state.step == stop_at:
                torch.save(trainer.state_dict(), tmp_path / "saved.pt")
            if trainer.state.step == stop_at + 2:
                raise Killed

    first = trainer_of(equal_study, tmp_path, [*board(tmp_path / "cut"), Kill()])
    torch.manual_seed(0)
    with pytest.raises(Killed):
        first.fit()
    first.close()
    time.sleep(1.1)  # the files of a run are read in the order of their names, which have whole seconds
    second = trainer_of(equal_study, tmp_path, board(tmp_path / "cut"))
    second.load_state_dict(torch.load(tmp_path / "saved.pt"))
    second.fit()
    second.close()
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")


def test_an_interrupted_run_that_is_resumed(equal_study: TinyStudy, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, trainer: Trainer, step: Step) -> None:
            if trainer.state.step == 4:
                trainer.stop_soon(15)

    saving = Checkpoints(lambda evaluation: None, tmp_path / "last.ckpt", {"config": {}})
    first = trainer_of(equal_study, tmp_path, [*board(tmp_path), Stop(), saving])
    with pytest.raises(Interrupted):
        first.fit()
    first.close()
    time.sleep(1.1)
    second = trainer_of(equal_study, tmp_path, board(tmp_path))
    second.load_state_dict(load_checkpoint(tmp_path / "last.ckpt")["trainer"])
    second.fit()
    second.close()
    assert [step for step, _ in points(read(tmp_path / "train"), "loss/loss")] == [1, 2, 3]
    assert [step for step, _ in points(read(tmp_path / "steps"), "step/loss/loss")] == list(range(1, 10))
    assert [image.step for image in read(tmp_path / "validation").Images("predictions")] == [1, 2, 3]
    assert len(hyperparameters(tmp_path)["groups"]) == 1


# ------------------------------------------------------------------------------------------- pictures and histograms


class Worse(Callback):
    """Makes one epoch the best."""

    def __init__(self, best: int) -> None:
        self.best = best

    def on_epoch(self, trainer: Trainer, evaluation: Evaluation) -> None:
        trainer.state.best_epoch = min(trainer.state.epoch, self.best)


@pytest.mark.parametrize(("best", "drawn"), [(1, [1, 5]), (3, [1, 3, 5]), (5, [1, 5])])
def test_pictures_are_few_but_of_the_best_and_the_last(
    best: int, drawn: list[int], equal_study: TinyStudy, tmp_path: Path
) -> None:
    callbacks = [Worse(best), *board(tmp_path, every_seconds=1e9, histograms=True)]
    trainer = trainer_of(equal_study, tmp_path, callbacks, epochs=5)
    trainer.fit()
    trainer.close()
    assert [image.step for image in read(tmp_path / "validation").Images("predictions")] == drawn
    histograms = read(tmp_path / "train")
    names = {f"weights/{name}" for name, _ in trainer.task.model.named_parameters()}
    assert set(histograms.Tags()["histograms"]) == names
    assert [one.step for one in histograms.Histograms(min(names))] == [1, 5]


def test_pictures_of_every_epoch_where_there_is_time(equal_study: TinyStudy, tmp_path: Path) -> None:
    trainer = trainer_of(equal_study, tmp_path, board(tmp_path), epochs=4)
    trainer.fit()
    trainer.close()
    assert [image.step for image in read(tmp_path / "validation").Images("predictions")] == [1, 2, 3, 4]
    assert read(tmp_path / "train").Tags()["histograms"] == []


# ----------------------------------------------------------------------------------------------------------- HPARAMS


def hyperparameters(folder: Path) -> dict[str, list[dict[str, object]]]:
    """What the HPARAMS tab is given for a folder: its columns, and a row for each run."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0, "hparams": 0}).AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = RequestContext()
    backend = backend_context.Context(
        TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder)), logdir=str(folder))
    )
    experiment = get_experiment.Handler(context, backend, "", api_pb2.GetExperimentRequest()).run()
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        start_index=0,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(context, backend, "", request).run().session_groups
    return {
        "columns": [{"name": info.name} for info in experiment.hparam_infos],
        "groups": [
            {
                "name": group.name,
                "parameters": {
                    name: value.number_value if value.HasField("number_value") else value.string_value
                    for name, value in group.hparams.items()
                },
                "metrics": {one.name.tag: one.value for one in group.metric_values},
                "statuses": [api_pb2.Status.Name(session.status) for session in group.sessions],
            }
            for group in groups
        ],
    }


def test_hyperparameters(equal_study: TinyStudy, tmp_path: Path) -> None:
    """The tab of several runs has a row for each of them, with the values of its best epoch."""
    best = {}
    for name, epoch in (("a", 2), ("b", 3)):
        trainer = trainer_of(equal_study, tmp_path, [Worse(epoch), *board(tmp_path / name)])
        state = trainer.fit()
        trainer.close()
        row = state.history[epoch - 1]
        best[f"{name}/validation"] = {
            f"best/{metric}": pytest.approx(row[f"val_{metric}"]) for metric in ("target_loss", "r2", "unifrac_r2")
        }
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["steps", "train", "validation"]
    shown = hyperparameters(tmp_path)
    assert [column["name"] for column in shown["columns"]] == sorted(PARAMETERS)
    assert {group["name"]: group["metrics"] for group in shown["groups"]} == best
    for group in shown["groups"]:
        assert group["parameters"] == {**PARAMETERS, "classifier": 0.0}
        assert group["statuses"] == ["STATUS_SUCCESS"]
