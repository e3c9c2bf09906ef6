"""The native kernels as built for other processors than this machine's, for any test to run on: see plugin.py."""
