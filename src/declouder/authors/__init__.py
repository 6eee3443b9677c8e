"""The authors' released checkpoints -> a pipeline of ours.

The code of Sui et al., "Diffusion Enhancement for Cloud Removal in Ultra-Resolution Remote Sensing
Imagery", IEEE TGRS 62, 2024, doi 10.1109/TGRS.2024.3411671, keeps a trained model in two files, both plain
state dicts:

    denoiser    the U-Net that predicts the noise, and the weight network under `wc.` (`sjlnet.` in files from
                before October 2024)
    reference   the network that makes the reference image: MSDA-CR or MemoryNet

Which bands, which of the two U-Nets and which reference network they hold is read from the tensors. Each
network is filled by a list of links, theirs -> ours, that must cover both sides: a tensor that is missing,
left over or of another shape is an error.
"""

from declouder.authors.conversion import (
    band_names,
    convert_checkpoints,
    networks_from_denoiser_checkpoint,
    reference_from_checkpoint,
)
from declouder.authors.files import read_state_dict

__all__ = [
    "band_names",
    "convert_checkpoints",
    "networks_from_denoiser_checkpoint",
    "read_state_dict",
    "reference_from_checkpoint",
]
