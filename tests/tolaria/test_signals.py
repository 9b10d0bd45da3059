"""Signals against a model in plain Python."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.leyline.config import Config, Precision
from esper.leyline.events import Epoch, Evaluation, Health
from esper.leyline.hypers import build_hypers
from esper.tolaria.signals import initial_signals, update_signals

CONFIG = Config(num_envs=1, slots=(), precision=Precision.FLOAT64, history=3)
HYPERS = build_hypers({}, 1, torch.float64, torch.device("cpu"))


def events(loss, accuracy):
    def one(value):
        return torch.tensor([value], dtype=torch.float64)

    none = torch.zeros(1, 0, dtype=torch.float64)
    health = Health(one(0.5), one(0.0), one(0.0), none, none, none.bool())
    epoch = Epoch(one(loss), one(accuracy), torch.tensor([True]), health)
    per_class = torch.zeros(1, 2, dtype=torch.float64)
    evaluation = Evaluation(one(loss), one(accuracy), per_class, torch.tensor([True]), none, none, none.bool())
    return epoch, evaluation


class SignalsModel:
    def __init__(self):
        self.losses, self.accuracies = [], []
        self.plateau = self.run = 0
        self.stable = False

    def see(self, loss, accuracy):
        if self.losses:
            gain = (self.losses[-1] - loss) / max(self.losses[-1], 1e-8)
            self.run = self.run + 1 if -0.05 < gain < 0.03 else 0
            self.plateau = self.plateau + 1 if accuracy - self.accuracies[-1] < 0.5 else 0
        self.stable = self.stable or self.run >= 3
        self.losses.append(loss)
        self.accuracies.append(accuracy)


epochs = st.lists(st.tuples(st.floats(0.05, 5.0), st.floats(0, 100), st.booleans()), min_size=1, max_size=12)


@given(epochs)
@settings(max_examples=100)
def test_signals_equal_the_model(rows):
    model, signals = SignalsModel(), initial_signals(CONFIG, 1, 2, torch.device("cpu"))
    assert signals.best_loss.item() == math.inf
    for loss, accuracy, dropped in rows:
        before = signals.clone()
        signals = update_signals(HYPERS, signals, *events(loss, accuracy), keep=torch.tensor([dropped]))
        if dropped:
            assert all(torch.equal(leaf, before[name]) for name, leaf in signals.items())
            continue
        model.see(loss, accuracy)
        assert int(signals.plateau) == model.plateau
        assert int(signals.stable_run) == model.run
        assert bool(signals.stable) == model.stable
        assert int(signals.epochs_seen) == len(model.losses)
        assert signals.best_accuracy.item() == max(0.0, *model.accuracies)
        assert signals.best_loss.item() == min(model.losses)
        padded = [0.0] * 3 + model.losses
        assert signals.loss_history[0].tolist() == padded[-3:]
        assert signals.accuracy_history[0].tolist() == ([0.0] * 3 + model.accuracies)[-3:]
        previous = model.losses[-2] if len(model.losses) > 1 else loss
        assert signals.loss_delta.item() == previous - loss
