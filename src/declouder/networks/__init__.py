"""The networks of Diffusion Enhancement: reference networks, denoiser and weight network."""
