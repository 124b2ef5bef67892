# What Debian 12's CMake 3.25.1 gets wrong about CUDA 13; deploy/cuda.sh includes this through CMAKE_PROJECT_INCLUDE.
# It sets a property on CUDA::nvToolsExt without asking whether it exists; CUDA 13 no longer has it.
if(NOT TARGET CUDA::nvToolsExt)
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
# It counts the toolkit's folder as one that the loader searches anyway, which holds for no folder in a cache.
if(CUDAToolkit_ROOT)
  add_link_options("LINKER:-rpath,${CUDAToolkit_ROOT}/lib64")
endif()
