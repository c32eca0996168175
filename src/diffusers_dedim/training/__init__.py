"""Train the bundled networks, and an attacker's: `dedim train unet|encoder|...|discriminator|purifier`."""
