// Whether this build holds machine code (or PTX that the driver can compile) for the current card; and a kernel that
// breaks the context, for tests.
#pragma once

#include <cuda_runtime_api.h>

namespace hone::cuda {

cudaError_t ProbeKernelImage();  // cudaErrorNoKernelImageForDevice: it does not

// Tests alone: a kernel that writes to an address which nothing is mapped at. Once it has run, every call of this
// process gives cudaErrorIllegalAddress.
void LaunchIllegalWrite(cudaStream_t stream);

}  // namespace hone::cuda
