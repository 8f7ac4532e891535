import torch

# Detection says so itself where PyTorch is too old for it.
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 1):
    collect_ignore_glob = ["test_*.py"]
