"""What Fuse is made of: vision transformers in a common form, their moments, and transport maps."""
