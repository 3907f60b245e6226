"""One thread a test process: two that spin for each other's core make a loaded machine many times slower."""

import torch

torch.set_num_threads(1)
