"""Tolaria: execution. Optimizers, training, evaluation and counterfactuals, the governor, datasets on the device."""
