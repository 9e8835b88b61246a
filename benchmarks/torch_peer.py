"""torch's optimizer steps and training loops, as contenders in other benchmarks.

Where JAX has a CUDA device, torch uses it too. On a CPU its threads go on spinning for a moment
after a step, into the next contender's turn. Told to sleep (OMP_WAIT_POLICY=PASSIVE) they make its
training of small networks three times as slow.
"""

import itertools
from importlib.util import find_spec

import jax
import numpy as np

RATE = 1e-3
# Those that torch has, and whether it has them fused.
OPTIMIZERS = {
    "sgd, momentum": True,
    "adam": True,
    "nadam": False,
    "adamw": True,
    "clip + adamw": True,
    "rmsprop": False,
}


def installed():
    """Whether there is a torch to compare with."""
    return find_spec("torch") is not None


def device():
    """Where torch runs: on the kind of device that JAX runs on."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def finish():
    """Waits for the device: like JAX, torch returns before it has computed."""
    if device() == "cuda":
        import torch

        torch.cuda.synchronize()


class Step:
    """An optimizer step: what `torch.optim` does between two backward passes."""

    def __init__(self, name, form, gradients, calls):
        import torch

        make = {
            "sgd, momentum": lambda *a, **k: torch.optim.SGD(*a, momentum=0.9, **k),
            "adam": torch.optim.Adam,
            "nadam": torch.optim.NAdam,
            "adamw": torch.optim.AdamW,
            "clip + adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }[name]
        self.params = []
        for gradient in gradients:
            param = torch.ones(gradient.shape, device=device(), requires_grad=True)
            param.grad = torch.from_numpy(np.array(gradient)).to(device())
            self.params.append(param)
        self.calls = calls
        self.optimizer = make(self.params, lr=RATE, **{form: True})
        self.clip = torch.nn.utils.clip_grad_norm_ if name.startswith("clip") else None

    def __call__(self):
        """One sample."""
        for _ in range(self.calls):
            if self.clip is not None:
                self.clip(self.params, 1.0)
            self.optimizer.step()
        finish()


def steps(name, gradients, calls):
    """Name -> contender, of the forms in which torch has an optimizer."""
    if name not in OPTIMIZERS or not installed():
        return {}
    forms = ("foreach", "fused") if OPTIMIZERS[name] else ("foreach",)
    return {f"torch {form}": Step(name, form, gradients, calls) for form in forms}


def epochs(features, hidden, classes, inputs, labels, batch_size):
    """Name -> an epoch of training with Adam.

    "torch" is eager, torch's default, on batches from a `DataLoader`; "torch indexed" the same on
    batches that are indexed by hand, on the device, for which torch has least to do; "torch
    compiled" has the model compiled too, and torch's fastest Adam, the fused one.
    """
    if not installed():
        return {}
    import torch

    inputs, labels = torch.from_numpy(inputs), torch.from_numpy(labels).long()
    data = torch.utils.data.TensorDataset(inputs, labels)
    loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True)
    on_device = inputs.to(device()), labels.to(device())

    def loaded():
        for x, y in loader:
            yield x.to(device()), y.to(device())

    def indexed():
        for rows in torch.randperm(len(inputs), device=device()).split(batch_size):
            yield on_device[0][rows], on_device[1][rows]

    def contender(batches, compiled=False):
        torch.manual_seed(0)
        layers = []
        for wide, narrow in itertools.pairwise((features, *hidden, classes)):
            layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1]).to(device())
        optimizer = torch.optim.Adam(model.parameters(), RATE, fused=compiled)
        loss_fn = torch.nn.CrossEntropyLoss()
        predict = torch.compile(model) if compiled else model

        def epoch():
            for x, y in batches():
                optimizer.zero_grad()
                loss_fn(predict(x), y).backward()
                optimizer.step()
            finish()

        return epoch

    return {
        "torch": contender(loaded),
        "torch indexed": contender(indexed),
        "torch compiled": contender(indexed, compiled=True),
    }
