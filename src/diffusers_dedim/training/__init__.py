"""Train the networks: `dedim train unet|encoder|landmarks|visibility|discriminator|purifier`."""
