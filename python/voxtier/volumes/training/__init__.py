"""Patches and volumes for torch, MONAI and TorchIO. Nothing imports this folder."""
