"""Methods of pretraining, a file each: `declaration.py` says what a file must have in it."""
