"""High-throughput SimCLR and SimCLRv2 pretraining in JAX."""
