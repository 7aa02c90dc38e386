"""The on-device kit: what is copied to a device that builds its own engine."""
