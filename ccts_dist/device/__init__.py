"""The arithmetic of a device, and copies between it and the host."""
