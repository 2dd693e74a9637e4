"""The speed benchmark: what an epoch and a prediction cost, beside their Fourier transforms."""
