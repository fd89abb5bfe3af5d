"""The target: its parameters and its calls. Nothing here knows of hypernetworks."""
