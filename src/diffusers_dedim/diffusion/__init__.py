"""The paper: schedule, guidance, sampler and denoisers, on tensors alone; no photo, no file."""
