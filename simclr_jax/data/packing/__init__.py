"""Making packed stores, which `data/sources/packed.py` reads: `run.pack`, and `verify.verify`."""
