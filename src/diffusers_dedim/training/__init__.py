"""Train the three bundled networks: `dedim train unet|encoder|landmarks`."""
