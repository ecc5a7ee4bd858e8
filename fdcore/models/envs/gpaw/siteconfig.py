# How GPAW is compiled (GPAW_CONFIG): one process, Debian's libxc and OpenBLAS.
compiler = "gcc"
mpi = False
fftw = False
scalapack = False
libraries = ["xc", "openblas"]
