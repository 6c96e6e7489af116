"""A U-Net's arithmetic on CUDA devices: norms in fewer passes, and forwards that are recorded once and replayed."""
