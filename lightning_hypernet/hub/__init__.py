"""Hub: Hypernets and ensembles as folders with a model card, here and on the Hugging Face Hub."""

from lightning_hypernet.hub.pretrained import from_pretrained, push_to_hub, save_pretrained

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]
