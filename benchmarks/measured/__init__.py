"""What `benchmarks/gpu.py` is made of.

| file | what it does |
|---|---|
| `session.py` | the time that is left, and where rows go |
| `worker.py` | a process that holds the device, asked line by line |
| `ours.py` | such a process for the step of a recipe, by `train.step.make_step` |
| `theirs.py` | such a process for the PyTorch step of `benchmarks/torch_step.py` |
| `bench.py` | what is measured, and what all sections share |
| `speed.py` | the sections that time steps |
| `proofs.py` | the sections that show that something holds: same bits, resumption |
| `kernels.py` | a recorded trace, summed up by kinds of kernels |
| `roofline.py` | operations and bytes of a step beside what the device can do |
| `pieces.py` | views alone and the loss alone, to be timed beside the step they are part of |

The modules import one another by these names: the directory `benchmarks` is on the path of whatever
script of it is run.
"""
