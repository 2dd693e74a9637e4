"""Networks: plain torch modules, and the registry of generators that configuration and model file name."""
