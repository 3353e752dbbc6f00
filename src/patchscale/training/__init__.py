"""Training one run: `loop.py` reads top to bottom, its neighbours each hold one part of it.

loop.py        batch, forward, backward, clip, step, log, validate, save
setup.py       what a run starts with: data, model, optimizer, and the loss of a step
batches.py     which images make up which step, and the processes that load them
optim.py       AdamW, weight-decay groups, learning rate
checkpoint.py  what a resume needs, and the final weights
tensor_files.py  tensors of all processes in files, and back into any number of processes
collective.py  what one process does or meets, all of them know
evaluate.py    one pass over a split; rebuilding a trained run
diagnose.py    the first tensor that stopped being finite
failures.py    how an attempt ended, in status.json
distributed.py the processes of a run, and which rows of a batch each has
sharding.py    DDP and FSDP2: gradients summed, whole weights of shares
watch.py       ranks that hang or die; who tells of an error
bystander.py   what ranks other than 0 write: nothing
interrupt.py   Ctrl-C and SIGTERM: finish the step, save, stop
journal.py     metrics.jsonl, log.txt and whoever watches
compilation.py torch.compile of the backbone, in place
rollback.py    a loss that is not finite: fail, or go back once
device.py      device, precision, threads, peak memory
memory.py      micro-batches and activation checkpointing, chosen to fit
summary.py     environment.json and result.json
"""
