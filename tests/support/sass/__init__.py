"""Runs the machine code of CUDA kernels (SASS of sm_90) without a GPU, and counts what it executes.

What a warp issues is a measure of speed without noise. Results are computed along with it, so a count is of code that
has been seen to do its work. All threads of a block that are at the same instruction execute it as one array operation;
lanes of a warp part at a branch and come together again where the code says so, as on the hardware (convergence
barriers, BSSY and BSYNC), and an instruction counts once for each warp and each of its parts.

Not modelled: time, caches and bank conflicts. MUFU's approximations are rounded correctly, and fused multiply-adds of
doubles are those of long double.
"""
