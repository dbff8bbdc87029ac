"""The data of an experiment, in NumPy on the host: sets, label noise, sampling, transforms."""
