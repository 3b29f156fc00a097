"""A run: what it is asked to do, its data, the device, and the work itself."""
