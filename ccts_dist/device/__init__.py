"""What a device computes with, and copies between it and the host."""
