"""The data of an experiment, in NumPy on the host: sets, which examples are used, label noise, normalisation."""
