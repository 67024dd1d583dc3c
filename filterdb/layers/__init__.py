"""What a convolution is: detection, canonical form, role, depth and the BatchNorm behind it."""
