"""What several test modules share: small models, scans and products, and the record of injected faults."""
