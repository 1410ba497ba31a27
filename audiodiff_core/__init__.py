"""All that audiodiff knows of audio and diffusion, for one device: audio, mel images, networks, training, sampling, checkpoints."""
