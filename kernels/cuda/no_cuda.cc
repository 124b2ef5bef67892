// Stands in for the CUDA back end in a build without it.
#include "kernels/backend.h"
#include "proto/base/status.h"

namespace hone {

bool CudaBuilt() { return false; }

absl::StatusOr<std::string> CudaCardName(int) {
  return Unimplemented("this build has no CUDA back end; configure with -DHONE_CUDA=ON, or run with device: cpu");
}

absl::StatusOr<CudaCard> DescribeCuda(int device) {
  const absl::StatusOr<std::string> name = CudaCardName(device);
  return name.status();
}

absl::StatusOr<std::unique_ptr<Backend>> OpenCuda(const CudaOptions&) {
  return Unimplemented("this build has no CUDA back end; configure with -DHONE_CUDA=ON, or run with device: cpu");
}

}  // namespace hone
