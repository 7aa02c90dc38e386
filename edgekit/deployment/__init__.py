"""Deployment: a bundle goes to a device over SSH, is built, checked and measured there."""
