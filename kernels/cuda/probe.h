// Whether this build holds machine code (or PTX that the driver can compile) for the current card.
#pragma once

#include <cuda_runtime_api.h>

namespace hone::cuda {

cudaError_t ProbeKernelImage();  // cudaErrorNoKernelImageForDevice: it does not

}  // namespace hone::cuda
