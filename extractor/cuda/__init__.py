"""A U-Net's arithmetic on CUDA devices: norms in fewer passes, and forwards recorded as CUDA graphs and replayed."""
