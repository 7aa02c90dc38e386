"""Prediction: latency and memory on a device that is not here, with an error bar."""
