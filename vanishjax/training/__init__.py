"""Training: one pure step, its parallel wrappers, the loop and the data. It knows no model.

>>> import jax.numpy as jnp
>>> import vanishjax as vj
>>> x, targets = jnp.array([[1.0, 2.0], [2.0, 3.0]]), jnp.array([[0.1], [0.2]])
>>> def loss_fn(params, batch):
...     inputs, t = batch
...     return jnp.mean((inputs @ params["w"] + params["b"] - t) ** 2)
>>> problem = vj.Problem(loss_fn, {"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)}, vj.adam(0.01))
>>> state = vj.TrainState.create(problem)
>>> step = vj.make_train_step(problem)
>>> for _ in range(1000):
...     state, metrics = step(state, (x, targets))
>>> print((x @ state.params["w"] + state.params["b"]).round(3))
[[0.1]
 [0.2]]

`make_train_step(..., parallel="jit")` runs the same step over all GPUs or TPUs, with the batch
sharded; "pmap" and "shard_map" do the same with the same state. A batch that doesn't divide loses
no example and counts none twice; a metric named "weight" says how much each part of a batch counts.
`accumulate=4` computes the batch in four parts, for less memory. `shard_state="zero1"` divides the
optimizer's state among the devices, "fsdp" the parameters too; clips, trust ratios, Muon, `monitor`
and `probe` give the numbers of one device. `shard_state(state)` lays a state out, and
`restore_checkpoint` into it carries a run over to another number of devices.

`local_step` is that step without compilation, to be mapped or differentiated, and `scan_steps`
takes many of them in one compiled loop: what `fit` runs, and a whole run in a script of one's own.

`fit` trains on arrays or on any iterable of batches (Grain's, torch's, tf.data's), with validation,
learning curves, and a Ctrl-C or SIGTERM that keeps what was done. `save_checkpoint` and
`restore_checkpoint` keep a run on disk, so that a kill during a save loses nothing and another
model is refused by the first difference. `fit(..., checkpoints=Checkpoints(folder, every=500,
resume=True))` saves the whole run as it goes and goes on with it bit for bit: parameters, transform
state, key, place in the data, curves so far.

Exports stand in `__init__.pyi` and load when they are first used: reading data needs no JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
