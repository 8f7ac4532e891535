"""Every workload against every other way PyTorch offers, side by side in one process."""
