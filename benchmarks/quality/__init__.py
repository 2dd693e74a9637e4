"""The quality benchmark: simulated scans and the measured star, reconstructed by network, refinement and both."""
